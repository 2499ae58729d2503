"""Generated short stories for children, from a grammar with exactly known entropy (grammar.py)."""

from __future__ import annotations

from collections.abc import Iterator

from common.data.grammar import Form, Grammar

_WORDS = {
    "animal": "fox|rabbit|bear|mouse|owl|duck|hedgehog|turtle",
    "trait": "little|brave|shy|curious|sleepy|clever|kind|grumpy",
    "name": "Lily|Tom|Mia|Ben|Anna|Max|Rosa|Finn|Ella|Otto",
    "friend": "Bella|Jack|Nora|Sam|Ida|Paul|Greta|Hugo",
    "place": "forest|river|garden|hill|lake|meadow|old mill|beach",
    "weather": "sunny|rainy|windy|cold|foggy|warm",
    "color": "red|blue|golden|green|silver|purple",
    "thing": "ball|kite|lantern|boat|drum|shell|key|map|bell|hat",
    "spot": "under a stone|behind a tree|inside a hollow log|near the bridge|up on a branch",
    "mood": "happy|sad|surprised|tired|proud|afraid",
    "food": "apples|honey|bread|berries|soup|carrots",
    "said": "said|asked|whispered|shouted|laughed",
    "action": "danced|sang|waited|looked around|jumped up and down|sat down",
}
_PRONOUNS = Form(dict.fromkeys(["Tom", "Ben", "Max", "Finn", "Otto"], "he"), otherwise="she")
_RULES = {
    "story": [(1.0, "{opening} {wish} {events}{ending}\n")],
    "opening": [
        (0.5, "Once upon a time there was a {trait} {animal} named {name:hero}."),
        (0.3, "One {weather} day {name:hero} the {animal} went to the {place}."),
        (0.2, "Near the {place} lived {name:hero}, a {trait} {animal}."),
    ],
    "wish": [
        (0.6, "{=hero} wanted a {color:color} {thing:thing}, and so did {friend:friend}."),
        (0.4, "Then {they=hero} lost a {color:color} {thing:thing} and told {friend:friend}."),
    ],
    "events": [(0.35, "{event} "), (0.65, "{event} {events}")],
    "event": [
        (0.22, "{=hero} {action}."),
        (0.18, "{=friend} {action} and was {mood}."),
        (0.16, '"Where is the {=thing}?" {said} {=hero}.'),
        (0.14, "They looked {spot}, but the {=color} {=thing} was not there."),
        (0.12, "So {they=hero} walked to the {place}."),
        (0.10, "Now it was {weather}, and {they=hero} felt {mood}."),
        (0.08, "Both ate {food} together."),
    ],
    "ending": [
        (0.5, "At last they found the {=color} {=thing} {spot}, and {=hero} was {mood}."),
        (0.3, "In the end {=friend} gave {=hero} the {=thing}."),
        (0.2, "Since that day {=hero} and {=friend} are friends."),
    ],
}
GRAMMAR = Grammar("story", _RULES, _WORDS, {"they": _PRONOUNS})


def generate_stories(count: int, seed: int) -> Iterator[tuple[str, float]]:
    """Yield `count` pairs (story, surprisal in nats), with surprisal -ln P(story)."""
    return GRAMMAR.generate(count, seed)


def entropy_per_story() -> tuple[float, float]:
    """Return the exact (expected surprisal in nats, expected length in bytes) of a story."""
    return GRAMMAR.entropy()
