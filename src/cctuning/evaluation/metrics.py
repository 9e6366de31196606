"""Exact match, token F1 and ROUGE-L in any script.

The usual implementations are made for English: SQuAD's script splits at spaces only, and rouge-score drops every
character outside ASCII, which scores a perfect Thai summary 0. Here the rules are SQuAD's as MLQA extended them, and
Lin's ROUGE-L, over tokens that exist in every language; docstrings name the differences from the official scripts. All
scores are in [0, 1].
"""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import regex

from cctuning.languages import parse

# Articles by language, as in MLQA's script; Arabic's is a prefix and Hindi and Chinese have none.
_ARTICLES = {
    "en": frozenset(("a", "an", "the")),
    "es": frozenset(("un", "una", "unos", "unas", "el", "la", "los", "las")),
    "de": frozenset(("ein", "eine", "einen", "einem", "eines", "einer", "der", "die", "das", "den", "dem", "des")),
    "vi": frozenset(("của", "là", "cái", "chiếc", "những")),
}
_ARABIC_ARTICLE = "ال"
# Written without spaces between words, so a token is a character with its marks.
_UNSPACED_LANGUAGES = frozenset(("zh", "yue", "ja", "th", "my", "km", "lo"))
_TURKIC_CASING = frozenset(("tr", "az"))

# A character of a script without spaces, and what belongs to it: marks, the letters that Unicode counts to the cluster
# before them (Thai and Lao AM, the voice marks of half-width kana), and the consonant that Myanmar's virama and
# Khmer's coeng set below it.
_UNSPACED = r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}ーｰ]&&[\p{L}\p{M}\p{Nl}\p{No}]]"
_ATTACHED = r"(?:[\p{M}\u0e33\u0eb3\uff9e\uff9f]|(?<=[\u1039\u17d2])" + _UNSPACED + ")"
_TOKEN = regex.compile(f"{_UNSPACED}{_ATTACHED}*|(?:(?!{_UNSPACED}).)(?:(?!{_UNSPACED}).|\\p{{M}})*", regex.V1)
_PUNCTUATION = regex.compile(rf"[\p{{P}}{regex.escape(string.punctuation)}]")
_OUTSIDE_WORDS = regex.compile(r"(?<![\p{L}\p{N}\p{M}])\p{M}+|[^\p{L}\p{N}\p{M}]")
_INVISIBLE = regex.compile(r"[\p{Cf}\ufe00-\ufe0f]")  # formats and variation selectors


def normalise_answer(text: str, language: str) -> list[str]:
    """The tokens of an answer, with SQuAD's normalisation and MLQA's rules for the language.

    Source: `normalize_answer` of MLQA's script (Lewis et al. 2020, arXiv 1910.07475), which extends SQuAD's (Rajpurkar
    et al. 2016, arXiv 1606.05250): lower-case; delete punctuation (Unicode P* and ASCII's, nothing put in its place);
    drop the articles of en, es, de and vi; split at white space, and Chinese at each Han character. A language without
    a rule is split at white space alone. Script and region of `language` are ignored.

    Differences from MLQA that can change a score:
    - Arabic: MLQA's pattern `\\sال^|ال` also removes ال inside words (عالم becomes two tokens); here it is removed at
      the start of a word only.
    - ja, th, my, km and lo, which MLQA lacks, are split like Chinese: Han, kana, Thai, Lao, Myanmar and Khmer
      characters one by one with their marks, while Latin letters and digits stay in runs.
    - Articles are whole white-space tokens (MLQA: between regex word boundaries, so also next to a symbol).
    - Text is normalised to NFC (not NFKC: full-width digits stay distinct from ASCII ones); invisible format
      characters are removed, the zero-width space counts as a space; tr and az pair İ with i and I with ı.
    """
    code = _language_code(language)
    words = _PUNCTUATION.sub("", _clean(text, code)).split()
    if code == "ar":
        words = [word for word in (word.removeprefix(_ARABIC_ARTICLE) for word in words) if word]
    articles = _ARTICLES.get(code, frozenset())
    words = [word for word in words if word not in articles]
    if code in _UNSPACED_LANGUAGES:
        return [token for word in words for token in _TOKEN.findall(word)]
    return words


def exact_match(prediction: str, targets: Sequence[str], language: str) -> float:
    """1.0 if the prediction has the same normalised tokens as any target, otherwise 0.0.

    Source: SQuAD's exact match (Rajpurkar et al. 2016, section 6.1) with `normalise_answer`. Two empty sides match.
    """
    predicted = normalise_answer(prediction, language)
    return float(any(predicted == normalise_answer(target, language) for target in targets))


def token_f1(prediction: str, targets: Sequence[str], language: str) -> float:
    """The best F1, over the targets, between the bags of normalised tokens.

    Source: SQuAD's macro-averaged F1, before the average (Rajpurkar et al. 2016, section 6.1), with
    `normalise_answer`. If either side has no tokens the score is 1 if both have none and 0 otherwise, as in SQuAD
    2.0's script (Rajpurkar et al. 2018, arXiv 1806.03822); MLQA's script would give 0 in both cases.
    """
    predicted = normalise_answer(prediction, language)
    return max(_bag_f1(predicted, normalise_answer(target, language)) for target in targets)


def tokens_for_rouge(text: str, language: str) -> list[str]:
    """The lower-cased words of a text in any script, for ROUGE.

    Source: ours, after rouge-score's default tokenizer (lower-case, runs of letters and digits; no stemming), which
    keeps ASCII alone. A word is a run of letters, numbers and the combining marks on them, in every script; Han, kana,
    Thai, Lao, Myanmar and Khmer characters are words of their own with their marks, whatever the language. `language`
    decides only the case rule of tr and az. XL-Sum's multilingual ROUGE (Hasan et al. 2021, arXiv 2106.13822) segments
    those languages into words and stems some others, so its figures differ.
    """
    words = _OUTSIDE_WORDS.sub(" ", _clean(text, _language_code(language))).split()
    return [token for word in words for token in _TOKEN.findall(word)]


def rouge_l(prediction: str, target: str, language: str) -> float:
    """The ROUGE-L F-measure of a prediction against one target.

    Source: sentence-level ROUGE-L (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", equations 2-4)
    with beta = 1, over `tokens_for_rouge`: R = LCS/m and P = LCS/n, so F = 2PR/(P+R) = 2 LCS/(m+n). It is 0 if either
    side has no tokens, also if both have none, as in rouge-score.
    """
    predicted, wanted = tokens_for_rouge(prediction, language), tokens_for_rouge(target, language)
    if not predicted or not wanted:
        return 0.0
    return 2 * _common_subsequence_length(predicted, wanted) / (len(predicted) + len(wanted))


def _language_code(language: str) -> str:
    """The language of a code without script and region; an unknown code stays."""
    found = parse(language)
    return found.language if found is not None else language.lower()


def _clean(text: str, code: str) -> str:
    """Lower-case, normalise to NFC and remove invisible characters."""
    composed = unicodedata.normalize("NFC", text)
    if code in _TURKIC_CASING:
        composed = composed.replace("İ", "i").replace("I", "ı")
    lowered = unicodedata.normalize("NFC", composed.lower())
    return _INVISIBLE.sub("", lowered.replace("\u200b", " "))  # zero-width space


def _bag_f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = (Counter(predicted) & Counter(wanted)).total()
    return 2 * common / (len(predicted) + len(wanted))


def _common_subsequence_length(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, with two rows of the usual table."""
    above = [0] * (len(second) + 1)
    for left in first:
        row = [0]
        for column, right in enumerate(second):
            row.append(above[column] + 1 if left == right else max(above[column + 1], row[column]))
        above = row
    return above[-1]
