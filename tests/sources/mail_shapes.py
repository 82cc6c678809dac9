"""What mail programs put around an answered mail, by program and language, to make mails with.

Attributions and headers are those that Gmail, Apple Mail, Outlook and others write; the shapes are
seen in the fixtures of crisp-oss/email-reply-parser, crisp-oss/email-forward-parser, mailgun/talon
and alfonsrv/mail-parser-reply.  The words are not read from the project's own table.
"""

from __future__ import annotations

from datetime import datetime

from babel.dates import format_date, format_skeleton

#: Gmail's line by locale; `{d}` date, `{t}` time, `{n}` name, `{a}` address.
GMAIL = {
    "en": "On {d} at {t} {n} <{a}> wrote:",
    "de": "Am {d} um {t} Uhr schrieb {n} <{a}>:",
    "fr": "Le {d} à {t}, {n} <{a}> a écrit :",
    "es": "El {d} a las {t}, {n} (<{a}>) escribió:",
    "it": "Il giorno {d} alle ore {t} {n} <{a}> ha scritto:",
    "pt": "Em {d} às {t}, {n} <{a}> escreveu:",
    "nl": "Op {d} om {t} schreef {n} <{a}>:",
    "da": "Den {d} kl. {t} skrev {n} <{a}>:",
    "nb": "{d} kl. {t} skrev {n} <{a}>:",
    "sv": "Den {d} kl {t} skrev {n} <{a}>:",
    "fi": "{d} klo {t} {n} ({a}) kirjoitti:",
    "pl": "{d} o {t} {n} <{a}> napisał(a):",
    "cs": "{d} v {t} odesílatel {n} <{a}> napsal:",
    "sk": "{d} o {t} {n} <{a}> napísal(a):",
    "hu": "{n} <{a}> ezt írta (időpont: {d}, {t}):",
    "ro": "{d} la {t} {n} <{a}> a scris:",
    "hr": "{d} u {t} {n} <{a}> napisao je:",
    "sr": "{d} у {t} {n} <{a}> је написао/ла:",
    "sl": "V V {d} ob {t} je oseba {n} <{a}> napisala:",
    "bg": "На {d} в {t} ч., {n} <{a}> написа:",
    "ru": "{d} г. в {t}, {n} <{a}>:",
    "uk": "{d} р. о {t} {n} <{a}> пише:",
    "el": "Στις {d} στις {t}, ο χρήστης {n} <{a}> έγραψε:",
    "tr": "{n} <{a}>, {d} tarihinde saat {t} itibarıyla şunu yazdı:",
    "he": "\u202bבתאריך {d} ב-{t} מאת \u202a{n}\u202c\u200f <\u202a{a}\u202c\u200f>:\u202c",
    "ar": "في {d} في {t}، كتب {n} <{a}>:",
    "fa": "در تاریخ {d} ساعت {t} {n} <{a}> نوشت:",
    "hi": "{d} को {t} बजे {n} <{a}> ने लिखा:",
    "th": "ในวันที่ {d} เวลา {t} {n} <{a}> เขียนว่า:",
    "vi": "Vào {d} vào lúc {t} {n} <{a}> đã viết:",
    "id": "Pada {d} pukul {t} {n} <{a}> menulis:",
    "zh": "{n} <{a}> 于{d} {t}写道：",
    "zh_Hant": "{n} <{a}> 於 {d} {t}寫道：",
    "ja": "{d} {t} {n} <{a}>:",
    "ko": "{d} {t}, {n} <{a}>님이 작성:",
    "et": "{n} <{a}> kirjutas kuupäeval {d} kell {t}:",
    "lv": "{d}, plkst. {t} — lietotājs {n} (<{a}>) rakstīja:",
    "lt": "{d} {t}, {n} <{a}> rašė:",
    "ca": "Missatge de {n} <{a}> del dia {d} a les {t}:",
    "sw": "Mnamo {d}, {t} {n} <{a}> aliandika:",  # in no table: told by its shape
    "ka": "{d}, {t} {n} <{a}> წერდა:",
    "mn": "{d} {t} {n} <{a}>:",
}
#: Lines of other programs.
LINES = [
    "---- On {d} {t} {n} <{a}> wrote ----",
    '{d} {t}, "{n}" <{a}>:',
    "{d}, {t} from {n} <{a}>:",
    "On {d}, at {t}, {n} <{a}> wrote:",
    "Op {d} om {t} heeft {n} <{a}> het volgende geschreven:",
    "{d} {t} tarihinde, {n} <{a}> şunları yazdı:",
    "{n} <{a}> schrieb am {d}, {t}:",
    'In data {d} {t} "{n}" <{a}> ha scritto:',
    "{d} kl. {t} skrev {n} <{a}>:",
]
#: Lines without an address, above marked quotes only.
SHORT_LINES = [
    "On {d} {t}, {n} wrote:", "Am {d} um {t} schrieb {n}:", "Le {d} à {t}, {n} a écrit :",
    "{n} schrieb:", "{n} wrote:", "El {d} {t}, {n} escribió:", "{n} skrev den {d} {t}:",
]  # fmt: skip
#: From, sent, to, subject as Outlook has them.
HEADERS = {
    "en": "From|Sent|To|Subject", "de": "Von|Gesendet|An|Betreff", "fr": "De|Envoyé|À|Objet",
    "es": "De|Enviado el|Para|Asunto", "it": "Da|Inviato|A|Oggetto",
    "pt": "De|Enviada em|Para|Assunto", "nl": "Van|Verzonden|Aan|Onderwerp",
    "da": "Fra|Sendt|Til|Emne", "nb": "Fra|Sendt|Til|Emne", "sv": "Från|Skickat|Till|Ämne",
    "fi": "Lähettäjä|Lähetetty|Vastaanottaja|Aihe", "pl": "Od|Wysłano|Do|Temat",
    "cs": "Od|Odesláno|Komu|Předmět", "sk": "Od|Odoslané|Komu|Predmet",
    "hu": "Feladó|Elküldve|Címzett|Tárgy", "ro": "De la|Trimis|Către|Subiect",
    "hr": "Šalje|Poslano|Prima|Predmet", "sl": "Od|Poslano|Za|Zadeva",
    "bg": "От|Изпратено|До|Тема", "ru": "От|Отправлено|Кому|Тема",
    "uk": "Від|Надіслано|Кому|Тема", "el": "Από|Στάλθηκε|Προς|Θέμα",
    "tr": "Kimden|Gönderildi|Kime|Konu", "he": "מאת|נשלח|אל|נושא",
    "ar": "من|تم الإرسال|إلى|الموضوع", "fa": "از|ارسال شده|به|موضوع",
    "th": "จาก|ส่ง|ถึง|ชื่อเรื่อง", "vi": "Từ|Đã gửi|Tới|Chủ đề",
    "id": "Dari|Dikirim|Kepada|Subjek", "zh": "发件人|发送时间|收件人|主题",
    "zh_Hant": "寄件者|寄件日期|收件者|主旨", "ja": "差出人|送信日時|宛先|件名",
    "ko": "보낸 사람|보낸 날짜|받는 사람|제목", "et": "Saatja|Saadetud|Adressaat|Teema",
    "lv": "No|Nosūtīts|Kam|Tēma", "lt": "Nuo|Išsiųsta|Kam|Tema",
    "sw": "Kutoka|Ilitumwa|Kwa|Mada",  # in no table: told by its shape
}  # fmt: skip
#: Titles above headers.
TITLES = [
    "-----Original Message-----", "-----Ursprüngliche Nachricht-----",
    "-------- Oprindelig besked --------", "-------- Message d’origine --------",
    "-------- Originalmeddelande --------", "-------- Původní zpráva --------",
    "---------- Původní e-mail ----------", "------------------ 原始邮件 ------------------",
    "-------- 원본 메시지 --------", "-------- הודעה מקורית --------",
    "-------- Исходное сообщение --------", "----- Reply message -----",
    "-------- Ujumbe wa awali --------", "________________________________", "---Original---",
]  # fmt: skip
#: Above a mail that is passed on.
FORWARDS = [
    "---------- Forwarded message ---------", "---------- Weitergeleitete Nachricht ---------",
    "-------- Forwarded Message --------", "-------- Message transféré --------",
    "Begin forwarded message:", "Anfang der weitergeleiteten Nachricht:",
    "---------- Пересылаемое сообщение ---------", "---------- 转发的消息 ---------",
    "Début du message réexpédié :", "-------- Mensaje reenviado --------",
    "---------- Videresendt meddelelse ---------", "---------- Edelleenlähetetty viesti ---------",
]  # fmt: skip
#: What telephones and programs put below a mail.
APPS = [
    "Sent from my iPhone", "Von meinem iPhone gesendet", "Envoyé de mon iPhone",
    "Enviado desde mi iPhone", "Inviato da iPhone", "Enviado do meu iPhone",
    "Verstuurd vanaf mijn iPhone", "Skickat från min iPhone", "Sendt fra min iPhone",
    "Lähetetty iPhonesta", "Wysłane z iPhone'a", "Odesláno z iPhonu", "Az iPhone-omról küldve",
    "Trimis de pe iPhone", "Отправлено с iPhone", "Надіслано з iPhone", "iPhoneから送信",
    "나의 iPhone에서 보냄", "发自我的iPhone", "從我的 iPhone 傳送", "iPhone'umdan gönderildi",
    "Στάλθηκε από το iPhone μου", "נשלח מה-iPhone שלי", "ส่งจาก iPhone ของฉัน",
    "Đã gửi từ iPhone của tôi", "Dikirim dari iPhone saya", "Poslano z iPhona",
    "Get Outlook for iOS", "Envoyé à partir de Outlook pour iOS<https://aka.ms/o0ukef>",
    "Hanki Outlook for Android<https://aka.ms/AAb9ysg>", "Outlook für iOS beziehen",
    "Gesendet mit der GMX Mail App", "Von meinem Samsung Galaxy Smartphone gesendet.",
    "Sent with Proton Mail secure email.", "Envoyé avec la messagerie sécurisée Proton Mail.",
    "Enviado com o e-mail seguro Proton Mail.", "Sent from Yahoo Mail on Android",
    "Diese Nachricht wurde von meinem Android-Gerät mit K-9 Mail gesendet.",
    "Sent from Mail for Windows 10", "Отправлено из мобильной Яндекс.Почты",
]  # fmt: skip


def say(template: str, locale: str, when: datetime, name: str, address: str) -> str:
    """A line of a mail program in a language."""
    known = locale if locale != "mn" else "mn"
    day = format_date(when, "long" if when.minute % 2 else "medium", locale=known)
    if locale == "th":  # as Gmail writes it, in the Buddhist calendar
        day = day.replace(str(when.year), str(when.year + 543))
    time = format_skeleton("Hm", when, locale=known)
    return template.format(d=day, t=time, n=name, a=address)


def headers(
    locale: str, when: datetime, name: str, address: str, to: str, subject: str, first: str = "from"
) -> list[str]:
    """A block of headers as Outlook, or with the date first as GMX, puts it above a mail."""
    sender, sent, receiver, about = HEADERS[locale].split("|")
    day = format_date(when, "full", locale=locale)
    if locale == "th":
        day = day.replace(str(when.year), str(when.year + 543))
    time = format_skeleton("Hm", when, locale=locale)
    lines = [
        f"{sender}: {name} <{address}>", f"{sent}: {day} {time}", f"{receiver}: {to}",
        f"{about}: {subject}",
    ]  # fmt: skip
    return lines if first == "from" else [lines[1], lines[0], *lines[2:]]
