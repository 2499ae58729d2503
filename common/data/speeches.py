"""Generated German speeches of an invented parliament: a stand-in for real ones.

The grammar has exactly known entropy (grammar.py). The speeches have umlauts, a header with the
speaker and interjections in brackets like real minutes.
"""

from __future__ import annotations

from collections.abc import Iterator

from common.data.grammar import Form, Grammar

_WORDS = {
    "person": "Frau Müller|Herr Berger|Frau König|Herr Schäfer|Frau Groß|Herr Böhm|Frau Weiß|Herr Jäger",
    "group": "Fraktion der Mitte|Fraktion der Küste|Fraktion der Städte|Fraktion der Täler",
    "matter": "die Rente|die Bildung|das Klima|die Gesundheit|das Wohnen|die Bahn|die Forschung|das Handwerk",
    "quality": "wichtig|teuer|gerecht|gefährdet|unverzichtbar|überfällig|möglich",
    "demand": "mehr Geld|weniger Bürokratie|klare Regeln|größere Anstrengungen|ein Gesetz|eine Prüfung",
    "amount": "drei|zehn|zwölf|fünfzig|hundert|fünfhundert",
    "haste": "nicht länger warten|heute zustimmen|über Geld reden|den Ländern zuhören|die Kürzungen ablehnen",
    "claim": "so geht es nicht weiter|das ist die Wahrheit|wir tragen Verantwortung|Sie wissen es doch",
    "when": "gestern|im März|vor der Wahl|vor fünf Jahren|im Ausschuss",
    "heckle": "Unerhört!|Sehr richtig!|Das stimmt nicht!|Hört, hört!|Wo denn?",
}
_MATTERS = _WORDS["matter"].split("|")
_RULES = {
    "speech": [
        (1.0, "{person:speaker} ({group:group}):\n{address} {opening} {arguments}{closing}\n")
    ],
    "address": [
        (0.5, "Frau Präsidentin!"),
        (0.3, "Herr Präsident!"),
        (0.2, "Liebe Kolleginnen und Kollegen!"),
    ],
    "opening": [
        (0.6, "Wir sprechen heute über {matter:matter}."),
        (0.4, "Es geht um {matter:matter}, und es geht um {demand}."),
    ],
    "arguments": [(0.25, "{argument}\n"), (0.75, "{argument} {arguments}")],
    "argument": [
        (0.20, "{Upper=matter} ist {quality}."),
        (0.18, "Wir von der {=group} fordern {demand}."),
        (0.14, "Das kostet {amount} Millionen Euro im Jahr."),
        (0.13, "Wer {=matter} will, muss {haste}."),
        (0.12, "Meine Damen und Herren, {claim}!"),
        (0.09, "Das haben wir {when} beschlossen."),
        (0.08, "(Zuruf von {person}: {heckle})"),
        (0.06, "(Beifall bei der {=group})"),
    ],
    "closing": [
        (0.5, "Vielen Dank. (Beifall. {=speaker} setzt sich.)"),
        (0.3, "Stimmen Sie zu, für {=matter}!"),
        (0.2, "Herzlichen Dank für Ihre Aufmerksamkeit."),
    ],
}
# "die Rente" at the beginning of a sentence; every matter is listed
_UPPER = Form({matter: matter[0].upper() + matter[1:] for matter in _MATTERS}, otherwise="")
GRAMMAR = Grammar("speech", _RULES, _WORDS, {"Upper": _UPPER})


def generate_speeches(count: int, seed: int) -> Iterator[tuple[str, float]]:
    """Yield `count` pairs (speech, surprisal in nats), with surprisal -ln P(speech)."""
    return GRAMMAR.generate(count, seed)
