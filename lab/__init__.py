"""A laboratory for one question: when does a reward model pay for itself?"""

__version__ = "0.1.0"
