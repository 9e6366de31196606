"""Functions as a user might hand them to the function engine, good and bad."""

CALLS: list[list[str]] = []


def shift(texts, source, target):
    CALLS.append(list(texts))
    return [text.replace("a", "o") for text in texts]


def one_short(texts, source, target):
    return texts[:-1]


def numbers(texts, source, target):
    return [len(text) for text in texts]


def nothing(texts, source, target):
    return None


def raises(texts, source, target):
    raise ValueError("no\nsuch word")


def by_word(texts, source, target):
    """What a word in the text asks for."""
    said = {"copy": lambda text: text, "loop": lambda text: "na kadhalika " * 15, "long": lambda text: "x y z " * 400}
    said |= {
        "blank": lambda text: "  ",
        "lines": lambda text: "moja\nmbili",
        "mark": lambda text: text.replace("[[", "["),
    }
    said |= {"chinese": lambda text: "你好。", "english": lambda text: "Hello."}
    return [next((make(text) for word, make in said.items() if word in text), f"<{text}>") for text in texts]


NOT_CALLABLE = 3
