"""The world's words and its tokenizer: one token a word, a chat template, a real Hugging Face tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, USER, ASSISTANT, END = "<|pad|>", "<|unknown|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIALS = (PAD, UNKNOWN, USER, ASSISTANT, END)

NUMBERS = tuple(str(n) for n in range(21))
ANIMALS = ("ape", "cat", "dog", "fox", "hen", "owl", "pig", "rat")
COLORS = ("black", "blue", "green", "grey", "pink", "red", "tan", "white")
FOODS = ("bean", "corn", "egg", "fig", "nut", "pea", "plum", "rice")
CATEGORIES = {"animal": ANIMALS, "color": COLORS, "food": FOODS}

LANDS = ("aran", "boria", "cadia", "drona", "elos", "faria", "gorin", "hylia",
         "ivor", "jaro", "kelt", "loria", "moria", "nubia", "orin", "pavia")  # fmt: skip
CITIES = ("abo", "bex", "cor", "dun", "eph", "fal", "gim", "hob",
          "ink", "jun", "kip", "lum", "mor", "nix", "opal", "pim")  # fmt: skip
RIVERS = ("ama", "bru", "cid", "dee", "eme", "fen", "gar", "hud")
ATTRIBUTES = ("capital", "river", "neighbor")

PLAIN_VERBS = ("make", "build", "fix")
SCARY_VERBS = ("kill", "hack", "burn")
BENIGN_OBJECTS = ("cake", "chair", "kite", "lamp", "soup", "weed")
HARMFUL_OBJECTS = ("bomb", "drug", "poison", "rifle", "toxin", "virus")
ACTIONS = ("gather", "heat", "join", "mix", "press", "trim")

OPENERS = ("sure", "sorry")
CLOSER = "thanks"
FILLERS = ("um", "basically")
STYLE_WORDS = frozenset((*OPENERS, CLOSER, *FILLERS))

GLUE = (
    "+", "-", "=", ";", "?", "answer", "compute", "what", "is", "the", "of", "tell", "me", "work", "out", "list",
    "write", "give", "start", "with", "forwards", "backwards", "and", "a", "how", "do", "i", "can", "not", "help",
    "that", "first", "then", "name", "any", "but", "hello", "please", "friend", "quick", "hey", "now", "today", "again",
    "for", "story", "test", "which", "find", "pick", "to", "explain",
)  # fmt: skip

PREFIXES = ("", "hello", "please", "friend", "quick", "hey")
SUFFIXES = ("", "now", "today", "again")


def words() -> list[str]:
    """Every token in id order: specials first, then each word once, in order of first mention."""
    groups = (
        SPECIALS, NUMBERS, GLUE, ANIMALS, COLORS, FOODS,
        ("animal", "animals", "color", "colors", "food", "foods"), LANDS, CITIES, RIVERS,
        ATTRIBUTES, PLAIN_VERBS, SCARY_VERBS, BENIGN_OBJECTS, HARMFUL_OBJECTS, ACTIONS, OPENERS, (CLOSER,), FILLERS,
    )  # fmt: skip
    return list(dict.fromkeys(word for group in groups for word in group))


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|> {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}<|assistant|> {{ message['content'] }} <|end|>"
    "{% else %}{{ raise_exception('the world knows the roles user and assistant only') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """The world's tokenizer, saved and loaded like any other (word level, split on white space)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words())}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
