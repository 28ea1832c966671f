"""What may be asked of exits, in Python and in one word of a command line, and what is said of anything else."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import TailscaleError
from ts_proxy.filters import Candidate, suggestions, why_not
from ts_proxy.policy import BadPolicy, Policy, make_policy
from ts_proxy.spec import Spec, parse_spec

WRONG = [
    ({"country": "XX"}, r"country='XX' is no country of ISO 3166: two letters as in 'NL', or its name"),
    ({"country": "42"}, r"country='42' is no country"),
    ({"country": "4242"}, r"country='4242' is no country"),
    ({"city": "am\nsterdam"}, r"city='am\\nsterdam' is not a printable word"),
    ({"city": "a" * 300}, r"at most 253 letters"),
    ({"tag": "tag:"}, r"tag='tag:' is no tag"),
    ({"tag": " "}, r"tag=' ' is blank: leave it out for any"),
    ({"tag": "tag:9"}, r"tag='tag:9' is no tag: a letter, then letters, digits and dashes, as in 'tag:exit'"),
    ({"tag": "tag:é"}, r"is no tag"),
    ({"nodes": []}, r"nodes= is empty: name at least one exit, or leave it out for any"),
    ({"nodes": [""]}, r"nodes= has an empty name"),
    ({"nodes": ["hq", "  "]}, r"nodes='  ' is blank"),
    ({"nodes": "hq"}, r"nodes= is a list of names: nodes=\['hq'\]"),
    ({"nodes": [7]}, r"nodes=7 is not text"),
    ({"nodes": ["a"] * 300}, r"nodes= names 300 exits: 256 at most"),
    ({"nodes": ["hq"], "country": "NL"}, r"nodes= names the exits, and country=, .* or set fallback=True"),
    ({"pool": 0}, r"pool=0 is not a number of exits between 1 and 64"),
    ({"pool": 65}, r"pool=65"),
    ({"hedge": 0}, r"hedge=0 is not a number of seconds above 0"),
    ({"hedge": math.nan}, r"hedge=nan"),
    ({"hedge": "soon"}, r"hedge='soon'"),
    ({"reconnect": "later"}, r"reconnect='later' is not one of backoff and fast"),
]


@pytest.mark.parametrize(("options", "sentence"), WRONG, ids=[str(options)[:40] for options, _ in WRONG])
def test_a_wish_that_can_never_be_met_is_refused_with_what_to_write(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadPolicy, match=sentence) as caught:
        make_policy(**options)  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TailscaleError)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "any"),
        ({"country": "nl"}, "NL"),
        ({"country": "uk"}, "GB"),
        ({"country": "The Netherlands "}, "the netherlands"),
        ({"country": "NL", "city": "Amsterdam"}, "NL/amsterdam"),
        ({"city": "ams"}, "*/ams"),
        ({"tag": "exit"}, "tag:exit"),
        ({"tag": "tag:Exit", "country": "nl"}, "NL and tag:exit"),
        ({"nodes": ["HQ", "hq", "hq-backup."]}, "node:hq,hq-backup"),
        ({"nodes": ("hq",), "country": "NL", "fallback": True}, "node:hq or NL"),
        ({"direct_only": True, "has_predicate": True}, "any, direct only, as a function says"),
    ],
)
def test_a_wish_is_shown_as_it_may_be_written(options: dict[str, object], text: str) -> None:
    assert str(make_policy(**options)) == text  # type: ignore[arg-type]


def test_the_fingerprint_is_that_of_who_is_let_in() -> None:
    base = make_policy(country="NL")
    assert base.fingerprint == make_policy(country="nl", pool=9, hedge=5, sticky=False, reconnect="fast").fingerprint
    others = [make_policy(country="CH"), make_policy(nodes=["nl"]), make_policy(country="NL", direct_only=True)]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("NL", Spec("policy", make_policy(country="NL"))),
        (" nl ", Spec("policy", make_policy(country="NL"))),
        ("NL/ams", Spec("policy", make_policy(country="NL", city="ams"))),
        ("nl/New York", Spec("policy", make_policy(country="NL", city="new york"))),
        ("*/ams", Spec("policy", make_policy(city="ams"))),
        ("node:hq", Spec("policy", make_policy(nodes=["hq"]))),
        ("node:hq, hq-backup", Spec("policy", make_policy(nodes=["hq", "hq-backup"]))),
        ("node:fd7a:115c:a1e0::1", Spec("policy", make_policy(nodes=["fd7a:115c:a1e0::1"]))),
        ("tag:exit", Spec("policy", make_policy(tag="tag:exit"))),
        ("any", Spec("policy", Policy())),
        ("none", Spec("none", Policy())),
        ("DIRECT", Spec("direct", Policy())),
    ],
)
def test_one_word_says_which_exits(text: str, spec: Spec) -> None:
    assert parse_spec(text) == spec
    if spec.kind == "policy":
        assert parse_spec(str(spec.policy)) == spec, "what is shown may be written"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' is no exit: a country as in NL"),
        ("XX", "country='XX' is no country of ISO 3166"),
        ("NL/", "'NL/' is no exit"),
        ("diret", "'diret' is no exit: .*; did you mean 'direct'"),
        ("nones", "did you mean 'none'"),
        ("nod:hq", "'nod:hq' is no exit: .*; did you mean 'node:'"),
        ("nodes:hq", "did you mean 'node:'"),
        ("tags:exit", "did you mean 'tag:'"),
        ("node:", "'node:' names no exit: node:hq, or node:hq,hq-backup in order of preference"),
        ("node:hq,,x", "names no exit"),
        ("tag:", "'tag:' names no tag: tag:exit"),
        ("tag:9", "is no tag"),
        ("Netherlands", "'Netherlands' is no exit"),
    ],
)
def test_a_word_that_says_nothing_is_refused_with_the_nearest(text: str, sentence: str) -> None:
    with pytest.raises(BadPolicy, match=sentence):
        parse_spec(text)


@given(st.text(max_size=40))
def test_any_text_is_a_word_or_refused(text: str) -> None:
    try:
        assert isinstance(parse_spec(text).policy, Policy)
    except BadPolicy:
        return


DUTCH = Candidate("n1", ("dutch", "dutch.tailnet.test"), "netherlands", "nl", "amsterdam", "ams", ("tag:exit",))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, ""),
        ({"country": "SE"}, "it is in NL"),
        ({"city": "Utrecht"}, "it is in ams"),
        ({"tag": "exit2"}, "it is not tagged tag:exit2"),
        ({"nodes": ["swiss"]}, "it is not among the named exits"),
        ({"nodes": ["swiss"], "fallback": True}, ""),
        ({"nodes": ["dutch"], "country": "SE", "fallback": True}, ""),
    ],
)
def test_why_an_exit_is_not_wanted(options: dict[str, object], reason: str) -> None:
    assert why_not(make_policy(**options), DUTCH) == reason  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nodes": ["dutsh"]}, ("dutch",)),
        ({"country": "netherland"}, ("netherlands",)),
        ({"city": "amsterdamm"}, ("amsterdam",)),
        ({"tag": "exits"}, ("tag:exit",)),
        ({"country": "NL"}, ()),
        ({"nodes": ["qqq"]}, ()),
    ],
)
def test_words_that_no_exit_has_have_near_ones(options: dict[str, object], words: tuple[str, ...]) -> None:
    assert suggestions(make_policy(**options), [DUTCH]) == words  # type: ignore[arg-type]
