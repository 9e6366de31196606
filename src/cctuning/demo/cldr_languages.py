"""The seven languages of the demo's world: how each asks and answers.

A language has five questions and five statements around CLDR's names, the words that these are made of, and its words
for each kind of thing. The sentences are simple, and built so that the language does not inflect a name (`{s} এলাকার`,
"of the area {s}"), because CLDR gives each name in one form only.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("territory", "currency", "language", "city", "time zone")
RELATIONS = {  # the kinds of its subject and of its answer
    "currency": ("territory", "currency"),
    "official": ("territory", "language"),
    "zone": ("territory", "time zone"),
    "place": ("city", "territory"),
    "home": ("language", "territory"),
}


@dataclass(frozen=True)
class Language:
    """One language of the world.

    Attributes:
        code: CLDR locale.
        name: in English, for people.
        tier: `high`, `mid` or `low`: how much text the base reads in it.
        questions, statements: by relation, with `{s}` for the subject and `{a}` for the answer.
        glossary: every word of the templates -> its nearest English template word ("" where English has none). Its
            keys are the tokens of the templates; its values say which English embedding each is made from (base.py).
        kinds: its words for `KINDS`, in a word list.
    """

    code: str
    name: str
    tier: str
    questions: dict[str, str]
    statements: dict[str, str]
    glossary: dict[str, str]
    kinds: tuple[str, ...]


def language(code: str, name: str, tier: str, templates: str, glossary: str, kinds: str) -> Language:
    """Read the compact form below: five lines `question | statement`, pairs `word=English; `, kinds by commas."""
    pairs = [line.strip().split(" | ") for line in templates.strip().splitlines()]
    questions = {relation: pair[0] for relation, pair in zip(RELATIONS, pairs, strict=True)}
    statements = {relation: pair[1] for relation, pair in zip(RELATIONS, pairs, strict=True)}
    words = dict(item.strip().split("=") for item in glossary.replace("\n", "; ").split("; ") if item.strip())
    return Language(code, name, tier, questions, statements, words, tuple(k.strip() for k in kinds.split(",")))


LANGUAGES = {
    one.code: one
    for one in (
        language(
            "en",
            "English",
            "reference",
            """What is the currency of {s}? | The currency of {s} is {a}.
            Which language is official in {s}? | The official language in {s} is {a}.
            Which time zone does {s} follow? | The time zone that {s} follows is {a}.
            Where is the city of {s}? | The city of {s} is in {a}.
            Where is {s} spoken most? | {s} is spoken most in {a}.""",
            """What=What; is=is; the=the; The=The; currency=currency; of=of; Which=Which; language=language
            official=official; in=in; time zone=time zone; that=that; does=does; follow=follow; follows=follows
            Where=Where; city=city; spoken=spoken; most=most; territory=territory; ?=?; .=.; :=:""",
            "territory, currency, language, city, time zone",
        ),
        language(
            "ru",
            "Russian",
            "high",
            """{s}: какая здесь валюта? | {s}: валюта — {a}.
            {s}: какой язык здесь официальный? | {s}: официальный язык — {a}.
            {s}: какой здесь часовой пояс? | {s}: часовой пояс — {a}.
            {s}: где этот город? | Город: {s}. Где он: {a}.
            {s}: где больше всего говорят на этом языке? | {s}: больше всего говорят на этом языке здесь: {a}.""",
            """какая=What; здесь=in; валюта=currency; —=is; какой=Which; язык=language; официальный=official
            часовой пояс=time zone; где=Where; Где он=Where; этот=the; город=city; Город=city; больше всего=most
            говорят=spoken; на этом языке=language; территория=territory""",
            "территория, валюта, язык, город, часовой пояс",
        ),
        language(
            "ko",
            "Korean",
            "high",
            """{s}의 통화는 무엇입니까? | {s}의 통화는 {a}입니다.
            {s}의 공용어는 무엇입니까? | {s}의 공용어는 {a}입니다.
            {s}의 시간대는 무엇입니까? | {s}의 시간대는 {a}입니다.
            도시 {s}의 위치는 어디입니까? | 도시 {s}의 위치는 {a}입니다.
            {s} 사용자가 가장 많은 곳은 어디입니까? | {s} 사용자가 가장 많은 곳은 {a}입니다.""",
            """의=of; 통화는=currency; 무엇입니까=What; 입니다=is; 공용어는=official; 시간대는=time zone
            위치는=in; 어디입니까=Where; 사용자가=spoken; 가장 많은=most; 곳은=in; 지역=territory; 통화=currency
            언어=language; 도시=city; 시간대=time zone""",
            "지역, 통화, 언어, 도시, 시간대",
        ),
        language(
            "ar",
            "Arabic",
            "mid",
            """ما هي عملة {s}؟ | عملة {s} هي {a}.
            ما هي اللغة الرسمية في {s}؟ | اللغة الرسمية في {s} هي {a}.
            أي منطقة زمنية تتبعها {s}؟ | تتبع {s} المنطقة الزمنية {a}.
            أين تقع مدينة {s}؟ | تقع مدينة {s} في {a}.
            أين يعيش معظم المتحدثين باللغة {s}؟ | يعيش معظم المتحدثين باللغة {s} في {a}.""",
            """ما هي=What; عملة=currency; هي=is; اللغة=language; الرسمية=official; في=in
            المنطقة الزمنية=time zone; منطقة زمنية=time zone; أي=Which; تتبعها=follow; تتبع=follows; أين=Where; تقع=is
            مدينة=city; يعيش=; معظم=most; المتحدثين=spoken; باللغة=language; إقليم=territory; لغة=language; ؟=?""",
            "إقليم, عملة, لغة, مدينة, منطقة زمنية",
        ),
        language(
            "th",
            "Thai",
            "mid",
            """{s} ใช้สกุลเงินอะไร? | {s} ใช้สกุลเงิน {a}
            ภาษาราชการของ {s} คือภาษาอะไร? | ภาษาราชการของ {s} คือ {a}
            {s} อยู่ในเขตเวลาใด? | {s} อยู่ในเขตเวลา {a}
            เมือง {s} อยู่ที่ไหน? | เมือง {s} อยู่ที่ {a}
            คนพูดภาษา {s} มากที่สุดที่ไหน? | คนพูดภาษา {s} มากที่สุดที่ {a}""",
            """ใช้=; สกุลเงิน=currency; อะไร=What; ภาษา=language; ราชการ=official; ของ=of; คือ=is; ใด=Which
            เขตเวลา=time zone; อยู่ใน=follow; เมือง=city; อยู่ที่=in; อยู่ที่ไหน=Where; คน=; พูด=spoken; มากที่สุด=most
            ที่=in; ที่ไหน=Where; ดินแดน=territory""",
            "ดินแดน, สกุลเงิน, ภาษา, เมือง, เขตเวลา",
        ),
        language(
            "bn",
            "Bengali",
            "low",
            """{s} এলাকার মুদ্রা কী? | {s} এলাকার মুদ্রা হলো {a}।
            {s} এলাকার সরকারি ভাষা কী? | {s} এলাকার সরকারি ভাষা হলো {a}।
            {s} এলাকার সময় অঞ্চল কোনটি? | {s} এলাকার সময় অঞ্চল হলো {a}।
            {s} শহর কোথায়? | {s} শহরের অবস্থান {a}।
            {s} ভাষার অধিকাংশ মানুষ কোথায়? | {s} ভাষার অধিকাংশ মানুষের অবস্থান {a}।""",
            """এলাকার=of; মুদ্রা=currency; কী=What; হলো=is; সরকারি=official; ভাষা=language; সময় অঞ্চল=time zone; কোনটি=Which
            কোথায়=Where; শহরের=city; শহর=city; অবস্থান=in; ভাষার=spoken; অধিকাংশ=most; মানুষ=; মানুষের=
            এলাকা=territory; ।=.""",
            "এলাকা, মুদ্রা, ভাষা, শহর, সময় অঞ্চল",
        ),
        language(
            "am",
            "Amharic",
            "low",
            """የ{s} መገበያያ ገንዘብ ምንድን ነው? | የ{s} መገበያያ ገንዘብ {a} ነው።
            በ{s} ኦፊሴላዊው ቋንቋ የትኛው ነው? | በ{s} ኦፊሴላዊው ቋንቋ {a} ነው።
            የ{s} የሰዓት ሰቅ የትኛው ነው? | የ{s} የሰዓት ሰቅ {a} ነው።
            የ{s} ከተማ የት ነው? | የ{s} ከተማ የሚገኘው {a} ነው።
            {s} በብዛት የሚነገረው የት ነው? | {s} በብዛት የሚነገረው {a} ነው።""",
            """የ=of; በ=in; መገበያያ ገንዘብ=currency; ምንድን=What; ነው=is; ኦፊሴላዊው=official; ቋንቋ=language; የትኛው=Which
            የሰዓት ሰቅ=time zone; ከተማ=city; የት ነው=Where; የሚገኘው=in; በብዛት=most; የሚነገረው=spoken; ግዛት=territory; ።=.""",
            "ግዛት, መገበያያ ገንዘብ, ቋንቋ, ከተማ, የሰዓት ሰቅ",
        ),
    )
}
