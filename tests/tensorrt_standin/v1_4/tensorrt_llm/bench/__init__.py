"""Its benchmark tool."""
