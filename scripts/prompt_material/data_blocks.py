"""Tables, records and snippets of code for the tasks that come with data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from .material import Measure
from .writer import Exhausted, Writer, number


def table(w: Writer, target: int) -> str:
    """A table of figures by town and year, in one of five notations, of about `target` characters."""
    measure = _measure(w)
    notation = w.rng.choice([_csv, _markdown, _json, _sql, _listing])
    rows: list[tuple[str, int, str]] = []
    text = ""
    while len(rows) < 2 or len(text) < target:
        town = w.fill("[{town}|{town2}|{town2}|{town2}]")
        rows.append(
            (town, w.rng.randint(1950, 2022), number(w.rng.randint(measure.low, measure.high)).replace(",", ""))
        )
        text = notation(measure, rows)
    return text


def snippet(w: Writer, target: int) -> str:
    """Python functions about the topic, of about `target` characters."""
    pieces: list[str] = []
    templates = w.rng.sample(_SNIPPETS, len(_SNIPPETS))
    while templates and (not pieces or len("\n\n\n".join(pieces)) < 0.8 * target):
        pieces.append(templates.pop()(w))
    return "\n\n\n".join(pieces)


def identifier(text: str) -> str:
    """A name for a variable or column."""
    return re.sub(r"[^a-z]+", "_", text.lower()).strip("_")


def _measure(w: Writer) -> Measure:
    while True:
        try:
            measure: Measure = w.pick("measure")
        except Exhausted:
            w.turn_to_next_topic()
        else:
            return measure


Rows = list[tuple[str, int, str]]


def _csv(measure: Measure, rows: Rows) -> str:
    head = f"town,year,{identifier(measure.quantity)}_{identifier(measure.unit)}"
    return "\n".join([head, *(f"{town},{year},{value}" for town, year, value in rows)])


def _markdown(measure: Measure, rows: Rows) -> str:
    head = f"| Town | Year | {measure.quantity} ({measure.unit}) |\n|---|---|---|"
    return "\n".join([head, *(f"| {town} | {year} | {value} |" for town, year, value in rows)])


def _json(measure: Measure, rows: Rows) -> str:
    key = identifier(measure.quantity)
    return "\n".join(json.dumps({"town": town, "year": year, key: int(value)}) for town, year, value in rows)


def _sql(measure: Measure, rows: Rows) -> str:
    name = identifier(measure.quantity)
    lines = ",\n".join(f"  ('{town}', {year}, {value})" for town, year, value in rows)
    return f"INSERT INTO {name} (town, year, {identifier(measure.unit)}) VALUES\n{lines};"


def _listing(measure: Measure, rows: Rows) -> str:
    return "\n".join(f"{year}  {town}: {value} {measure.unit} ({measure.quantity})" for town, year, value in rows)


def _largest(w: Writer) -> str:
    key, one, many = _key(w), _one(w), identifier(w.topic.name)
    limit = w.rng.choice(["limit", "count", "top", "n", "how_many"])
    return (
        f"def largest_{many}({many}, {limit}={w.rng.randint(3, 12)}):\n"
        f'    """{w.topic.name.capitalize()} with the highest {key.replace("_", " ")} first."""\n'
        f'    ranked_{one} = sorted({many}, key=lambda {one}: {one}["{key}"], reverse=True)\n'
        f"    return ranked_{one}[:{limit}]"
    )


def _mean(w: Writer) -> str:
    key, one, many = _key(w), _one(w), identifier(w.topic.name)
    return (
        f"def mean_{key}({many}):\n    {key}_total = 0\n    for {one} in {many}:\n"
        f'        if {one}["town"] == "{w.town}":\n            {key}_total += {one}["{key}"]\n'
        f"    return {key}_total / len({many})"
    )


def _class(w: Writer) -> str:
    name = "".join(word.capitalize() for word in identifier(w.topic.one).split("_"))
    measure = _measure(w)
    field = identifier(measure.quantity)
    return (
        f"@dataclass(order=True)\nclass {name}:\n    {field}: int = {measure.low}  # {measure.unit}\n"
        f'    place: str = "{w.town}"\n\n    def has_unusual_{field}(self) -> bool:\n'
        f"        return self.{field} > {w.rng.randint(measure.low, measure.high)}\n\n"
        f"    def {identifier(w.topic.one)}_label(self) -> str:\n"
        f'        return f"{{self.place}}: {{self.{field}}} {measure.unit}"'
    ).removeprefix(w.rng.choice(["", "@dataclass(order=True)\n"]))


def _loader(w: Writer) -> str:
    one, many = _one(w), identifier(w.topic.name)
    handle = w.rng.choice(["handle", "source", "stream", "fh", "infile"])
    return (
        f"def load_{many}({one}_path):\n    {many} = []\n"
        f"    with open({one}_path, newline='') as {handle}:\n"
        f"        for {one} in csv.DictReader({handle}):\n"
        f"            {one}['year'] = int({one}['year'])\n"
        f"            if {one}['year'] >= {w.rng.randint(1950, 2015)}:\n"
        f"                {many}.append({one})\n    print(len({many}), 'rows for {w.town}')\n"
        f"    return {many}"
    )


def _words(w: Writer) -> str:
    words = ",\n    ".join(f'"{term}": "{meaning}"' for term, meaning in w.rng.sample(w.topic.terms, 3))
    name = identifier(w.topic.name)
    return (
        f"{name.upper()} = {{\n    {words},\n}}\n\ndef explain_{name}(text):\n"
        f"    for word, meaning in {name.upper()}.items():\n"
        f"        text = text.replace(word, f'{{word}} ({{meaning}})', {w.rng.randint(1, 99)})\n"
        f"    return text or '{w.topic.name}'"
    )


def _shell(w: Writer) -> str:
    name, one = identifier(w.topic.name), _one(w)
    return (
        f"# nightly copy of the {w.topic.name} records in {w.town}\ncd /srv/{name} || exit {w.rng.randint(1, 99)}\n"
        f'for {one} in *.csv; do grep -v \'^#\' "${one}" | sort -t, -k{w.rng.randint(1, 4)} > "/backup/${one}"; done\n'
        f"find /backup -name '{name}-*.csv' -mtime +{w.rng.randint(14, 90)} -delete"
    )


def _query(w: Writer) -> str:
    measure = _measure(w)
    key, one = identifier(measure.quantity), _one(w)
    return (
        f"SELECT {one}_town, MAX({key}) AS highest_{one}, COUNT(*) AS years\nFROM {identifier(w.topic.name)}\n"
        f"WHERE year > {w.rng.randint(1960, 2010)} AND {key} BETWEEN {measure.low} AND {measure.high}\n"
        f"GROUP BY {one}_town HAVING COUNT(*) >= {w.rng.randint(2, 9)}\nORDER BY highest_{one} DESC;"
    )


def _group(w: Writer) -> str:
    key, one, many = _key(w), _one(w), identifier(w.topic.name)
    return (
        f"def {many}_by_town({many}):\n    by_town_{one} = {{}}\n    for {one} in {many}:\n"
        f'        by_town_{one}.setdefault({one}["town"], []).append({one}["{key}"])\n'
        f"    return {{town: max({key}) for town, {key} in by_town_{one}.items() if {key}[{w.rng.randint(1, 9)}:]}}"
    )


def _test(w: Writer) -> str:
    key, many = _key(w), identifier(w.topic.name)
    low, high = sorted(w.rng.sample(range(10, 400), 2))
    return (
        f"def test_{many}_in_{identifier(w.town)}():\n"
        f'    {many} = [{{"town": "{w.town}", "{key}": {low}}}, {{"town": "{w.town}", "{key}": {high}}}]\n'
        f'    assert sum({_one(w)}["{key}"] for {_one(w)} in {many}) == {low + high + w.rng.choice([0, 1])}'
    )


def _key(w: Writer) -> str:
    return identifier(_measure(w).quantity)


def _one(w: Writer) -> str:
    return identifier(w.topic.one).split("_")[-1]


_SNIPPETS: list[Callable[[Writer], str]] = [_largest, _mean, _class, _loader, _words, _shell, _query, _group, _test]
