"""Prompts and demonstrations from files: reading, checking, splitting."""
