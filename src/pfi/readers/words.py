"""How many words a text has, also in scripts that put no spaces between words.

In those the words are estimated: letters divided by the usual letters of a word.  That is enough
for what words are counted for here, whether a text is long enough to learn from.  A segmenter such
as ICU's would bring a large compiled library and counts that change with its dictionaries.
"""

from __future__ import annotations

import re

#: Scripts without spaces, and the letters that a word of theirs has on average: what ICU 78's word
#: breaker gives over the Chinese, Japanese, Thai and Khmer pages of obsidianmd/obsidian-help
#: (500,000 characters).  Marks above and below letters are not counted.  Lao is written like Thai,
#: Burmese was counted in a few sentences; the syllables of Tibetan are marked and count as words.
_LETTERS_A_WORD: list[tuple[re.Pattern[str], float]] = [
    (re.compile(r"[\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
                r"\U00020000-\U0003ffff]"), 1.65),  # Chinese characters
    (re.compile(r"[\u3041-\u309f]"), 1.4),  # Hiragana
    (re.compile(r"[\u30a1-\u30ff\u31f0-\u31ff\uff66-\uff9f]"), 3.8),  # Katakana
    (re.compile(r"[\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46"  # Thai
                r"\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6\u0edc-\u0edf]"), 3.1),  # Lao
    (re.compile(r"[\u1780-\u17b3\u17d7\u17dc]"), 2.9),  # Khmer
    (re.compile(r"[\u1000-\u102a\u103f\u1050-\u1055\u105a-\u105d\u1061\u1065\u1066\u106e-\u1070"
                r"\u1075-\u1081\u108e\ua9e0-\ua9ef\uaa60-\uaa7a"  # Burmese
                r"\u1950-\u19c9\u1a20-\u1a54]"), 2.2),  # the Tai scripts beside it
]  # fmt: skip
_UNSPACED = re.compile(
    r"[\u2e80-\u2fdf\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
    r"\u0e01-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u109f\u1780-\u17dd"
    r"\u1950-\u19df\u1a20-\u1aad\ua9e0-\ua9fe\uaa60-\uaa7f]+"
)
_TIBETAN = re.compile(r"[\u0f0b\u0f0c\u0f0d]+")


def count_words(text: str) -> int:
    """The words of a text: what stands between spaces, and an estimate where there are none."""
    text = _TIBETAN.sub(" ", text)
    if not _UNSPACED.search(text):
        return len(text.split())
    spaced = sum(any(map(str.isalnum, token)) for token in _UNSPACED.sub(" ", text).split())
    estimate = sum(len(pattern.findall(text)) / letters for pattern, letters in _LETTERS_A_WORD)
    return spaced + max(round(estimate), 1)
