"""The embedded default: a small procedural language with six domains and a known true utility."""
