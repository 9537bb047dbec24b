"""Its pools."""
