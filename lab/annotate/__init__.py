"""A page where people say which of two completions is better: ``python -m lab.annotate``, docs/annotate.md.

The state is pure (``items``, ``session``, ``agreement``), the file knows nothing of the page (``journal``), and only
``page`` and ``look`` know of NiceGUI.
"""
