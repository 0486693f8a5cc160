"""The folders that packages hand to each other; `docs/formats.md` lists every field."""
