"""What mail programs put before subjects: marks of replies, forwarded and automatic mail.

The marks are those of Wikipedia's list of abbreviations in e-mail subjects, and Outlook's.
"""

from __future__ import annotations

import re

_NUMBER = r"(\[\d+\]|\(\d+\)|\*\d+|\^\d+)?"

_REPLY = re.compile(
    r"\s*(re|aw|antw|antwort|sv|vs|vá|válasz|res|r|rif|odp|odg|ynt|yan|cvb|ref|ats|bls|balas|"
    r"trả lời|απ|σχετ|отв|отг|ответ|відп|השב|תגובה|رد|پاسخ|回复|回覆|答复|答覆|返信|回信|답장|회신|"
    r"ตอบ|ตอบกลับ|উত্তর|उत्तर)"
    rf"\s*{_NUMBER}\s*[:：]\s*", re.I,
)  # fmt: skip
_FORWARD = re.compile(
    r"\s*(fw|fwd|wg|tr|rv|enc|i|inoltra|doorst|vl|vb|vidarebefordrat|pd|továbbítás|tov|továbbított|"
    r"ilt|iletildi|yönlendirme|redir|πρθ|пер|перес|הועבר|إعادة توجيه|转发|轉寄|轉發|転送|전달|"
    r"ส่งต่อ|chuyển tiếp|terusan)"
    rf"\s*{_NUMBER}\s*[:：]\s*", re.I,
)  # fmt: skip
_AUTOMATIC = re.compile(
    r"\s*(auto(matic|matische?|mated|mātiska)?[ -]?(reply|antwort|response|antwoord|atbilde)|"
    r"out of (the )?office|abwesenheits\w*|réponse automatique|absence du bureau|"
    r"respuesta automática|resposta automática|risposta automatica|automatiskt? svar|"
    r"automaattinen vastaus|odpowiedź automatyczna|automatick[áé] odpov[eě][dď]ď?|"
    r"automatikus válasz|răspuns automat|автоматический ответ|автоматична відповідь|"
    r"автоматичен отговор|αυτόματη απάντηση|otomatik yanıt|מענה אוטומטי|رد تلقائي|自动答复|"
    r"自動回覆|自動応答|자동 회신|ตอบกลับอัตโนมัติ|trả lời tự động|balasan otomatis)"
    r"\s*[:：]", re.I,
)  # fmt: skip


def is_reply(subject: str) -> bool:
    """Whether a subject begins with `Re:` in any language."""
    return _REPLY.match(subject) is not None


def is_forward(subject: str) -> bool:
    """Whether a subject begins with `Fwd:` in any language."""
    return _FORWARD.match(subject) is not None


def is_automatic(subject: str) -> bool:
    """Whether a subject is one that a program answers with while its owner is away."""
    return _AUTOMATIC.match(subject) is not None


def base_subject(subject: str) -> str:
    """A subject without `Re:` and the like."""
    while match := _REPLY.match(subject) or _FORWARD.match(subject):
        subject = subject[match.end() :]
    return subject.strip()
