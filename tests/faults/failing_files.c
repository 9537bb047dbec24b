/* Makes the n-th change of a file below a directory fail, or kills the process there: loaded with LD_PRELOAD.

   LLEM_FAULT_ROOT   the directory, absolute; changes elsewhere are passed on untouched
   LLEM_FAULT_AT     which change, from 1; 0: none, all are only counted
   LLEM_FAULT_KIND   "ENOSPC", "EIO", "EMFILE": the call fails with it, this one and all that follow until
                     LLEM_FAULT_LAST; "kill": SIGKILL instead of the call
   LLEM_FAULT_LAST   the last change that fails; by default only the n-th does
   LLEM_FAULT_COUNT  file that gets the number of changes seen when the process ends

   A change is: open for writing or creating, write, fsync, rename, link, unlink, mkdir, rmdir, truncate. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define FDS 4096

static char ours[FDS]; /* descriptors of files below the root */
static long seen, at, last;
static int error_number;
static const char *root;
static pid_t owner; /* children that were forked or started by this process count for themselves, and so not at all */

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void begin(void) {
    const char *kind = getenv("LLEM_FAULT_KIND");
    root = getenv("LLEM_FAULT_ROOT");
    at = getenv("LLEM_FAULT_AT") ? atol(getenv("LLEM_FAULT_AT")) : 0;
    last = getenv("LLEM_FAULT_LAST") ? atol(getenv("LLEM_FAULT_LAST")) : at;
    error_number = ENOSPC;
    if (kind && !strcmp(kind, "EIO")) error_number = EIO;
    if (kind && !strcmp(kind, "EMFILE")) error_number = EMFILE;
    if (kind && !strcmp(kind, "kill")) error_number = 0;
    owner = getpid();
    unsetenv("LD_PRELOAD"); /* this process alone */
}

__attribute__((destructor)) static void end(void) {
    const char *path = getenv("LLEM_FAULT_COUNT");
    if (!path || getpid() != owner) return;
    int (*real_open)(const char *, int, ...) = real("open");
    int fd = real_open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd >= 0) {
        char text[32];
        ssize_t (*real_write)(int, const void *, size_t) = real("write");
        int length = snprintf(text, sizeof text, "%ld\n", seen);
        if (real_write(fd, text, (size_t)length) < 0) _exit(99);
        close(fd);
    }
}

/* Whether this change is to fail; counts it. */
static int fails(void) {
    if (getpid() != owner) return 0;
    long number = __sync_add_and_fetch(&seen, 1);
    if (!at || number < at || number > last) return 0;
    if (!error_number) {
        kill(getpid(), SIGKILL);
        pause();
    }
    errno = error_number;
    return 1;
}

static int below_path(int dirfd, const char *path) {
    char full[8192], link[64], directory[4096];
    if (!root || !path) return 0;
    if (path[0] == '/') snprintf(full, sizeof full, "%s", path);
    else {
        if (dirfd == AT_FDCWD) { if (!getcwd(directory, sizeof directory)) return 0; }
        else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
            ssize_t length = readlink(link, directory, sizeof directory - 1);
            if (length < 0) return 0;
            directory[length] = 0;
        }
        snprintf(full, sizeof full, "%s/%s", directory, path);
    }
    size_t length = strlen(root);
    return !strncmp(full, root, length) && (full[length] == '/' || full[length] == 0);
}

static int is_ours(int fd) { return fd >= 0 && fd < FDS && ours[fd]; }

static int opened(int fd, int mine) {
    if (fd >= 0 && fd < FDS) ours[fd] = (char)mine;
    return fd;
}

#define OPENS(NAME, DIRECTORY, TYPES, PARAMETERS, ARGUMENTS)                                                          \
    int NAME PARAMETERS {                                                                                              \
        int(*next) TYPES = real(#NAME);                                                                                \
        mode_t mode = 0;                                                                                               \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                           \
            va_list rest;                                                                                              \
            va_start(rest, flags);                                                                                     \
            mode = va_arg(rest, mode_t);                                                                               \
            va_end(rest);                                                                                              \
        }                                                                                                              \
        int mine = below_path(DIRECTORY, path);                                                                        \
        if (mine && ((flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT) && fails()) return -1;                        \
        return opened(next ARGUMENTS, mine);                                                                           \
    }
#define OPEN(NAME) OPENS(NAME, AT_FDCWD, (const char *, int, ...), (const char *path, int flags, ...), (path, flags, mode))
#define OPENAT(NAME)                                                                                                   \
    OPENS(NAME, dirfd, (int, const char *, int, ...), (int dirfd, const char *path, int flags, ...),                   \
          (dirfd, path, flags, mode))
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    int (*next)(int) = real("close");
    if (fd >= 0 && fd < FDS) ours[fd] = 0;
    return next(fd);
}

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*next)(int, const void *, size_t) = real("write");
    if (is_ours(fd) && fails()) return -1;
    return next(fd, data, size);
}

#define ON_FD(NAME, PARAMETERS, ARGUMENTS)                                                                             \
    int NAME PARAMETERS {                                                                                              \
        int(*next) PARAMETERS = real(#NAME);                                                                           \
        if (is_ours(fd) && fails()) return -1;                                                                         \
        return next ARGUMENTS;                                                                                         \
    }
ON_FD(fsync, (int fd), (fd))
ON_FD(fdatasync, (int fd), (fd))
ON_FD(ftruncate, (int fd, off_t length), (fd, length))
ON_FD(ftruncate64, (int fd, off64_t length), (fd, length))

#define ON_PATH(NAME, PARAMETERS, ARGUMENTS, DIRECTORY, PATH)                                                          \
    int NAME PARAMETERS {                                                                                              \
        int(*next) PARAMETERS = real(#NAME);                                                                           \
        if (below_path(DIRECTORY, PATH) && fails()) return -1;                                                         \
        return next ARGUMENTS;                                                                                         \
    }
ON_PATH(rename, (const char *from, const char *to), (from, to), AT_FDCWD, to)
ON_PATH(renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), b, to)
ON_PATH(link, (const char *from, const char *to), (from, to), AT_FDCWD, to)
ON_PATH(linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags), b, to)
ON_PATH(unlink, (const char *path), (path), AT_FDCWD, path)
ON_PATH(unlinkat, (int dirfd, const char *path, int flags), (dirfd, path, flags), dirfd, path)
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
ON_PATH(mkdirat, (int dirfd, const char *path, mode_t mode), (dirfd, path, mode), dirfd, path)
ON_PATH(rmdir, (const char *path), (path), AT_FDCWD, path)
