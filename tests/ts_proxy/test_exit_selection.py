"""Which exit is taken: a table of who is there, what is remembered and what must come out, and its laws."""
# ruff: noqa: E501 - a table reads best one row a line

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_proxy import selection as because
from ts_proxy.filters import Candidate, fits
from ts_proxy.policy import Policy, make_policy
from ts_proxy.selection import Memory, Selection, Standing, is_clearly_nearer, merit, select

NOW = 1000.0
LOST, BROKEN = Standing(is_lost=True), Standing(is_broken=True)


def node(
    name: str,
    *,
    code: str = "",
    city: str = "",
    tags: tuple[str, ...] = (),
    priority: int = 0,
    online: bool = True,
    direct: bool = True,
    latency: float | None = 0.020,
    welcome: bool = True,
) -> Candidate:
    country = {"nl": "netherlands", "ch": "switzerland"}.get(code, "")
    return Candidate(
        name, (name, f"{name}.tailnet.test"), country, code, city, city[:3], tags, priority, online, direct,
        latency if direct else None, welcome,
    )  # fmt: skip


A, B, C, D = (node(name) for name in "abcd")
NEAR, FAR = node("near", latency=0.010), node("far", latency=0.200)
RELAYED = node("relayed", direct=False)
DUTCH, SWISS = node("dutch", code="nl", city="amsterdam"), node("swiss", code="ch", city="zurich", tags=("tag:exit",))
POOL = ("b", "c")


class Case(NamedTuple):
    """One row: a wish, who is there, what is remembered, and the order that must come out, with its reason."""

    name: str
    policy: Policy
    there: list[Candidate]
    order: str
    reason: str
    standings: dict[str, Standing] = {}  # noqa: RUF012 - nobody writes to it
    memory: Memory = Memory()
    session: str = ""


def wish(**options: object) -> Policy:
    return make_policy(**options)  # type: ignore[arg-type]


def direct_since(seconds: float) -> Standing:
    return Standing(direct_since=NOW - seconds)


ANY, FICKLE = wish(), wish(sticky=False)
AB = wish(nodes=("a", "b"))
AB_OR_NL = wish(nodes=("a", "b"), country="NL", fallback=True)

CASES = [
    # Nobody, and whoever fits
    Case("nobody is there", ANY, [], "", because.BEST),
    Case("one is there", ANY, [A], "a", because.BEST),
    Case("country by code", wish(country="NL"), [DUTCH, SWISS], "dutch", because.BEST),
    Case("country by name", wish(country="Switzerland"), [DUTCH, SWISS], "swiss", because.BEST),
    Case("country of nobody", wish(country="SE"), [DUTCH, SWISS], "", because.BEST),
    Case("city by name", wish(city="Zurich"), [DUTCH, SWISS], "swiss", because.BEST),
    Case("city by code", wish(city="ams"), [DUTCH, SWISS], "dutch", because.BEST),
    Case("country and city", wish(country="NL", city="ams"), [DUTCH, SWISS], "dutch", because.BEST),
    Case("a city of another country", wish(country="NL", city="zur"), [DUTCH, SWISS], "", because.BEST),
    Case("tag", wish(tag="tag:exit"), [DUTCH, SWISS], "swiss", because.BEST),
    Case("unwelcome", ANY, [node("x", welcome=False), A], "a", because.BEST),
    Case("a place that control does not tell", wish(country="NL"), [A], "", because.BEST),
    # By merit
    Case("direct before relayed", FICKLE, [RELAYED, FAR], "far relayed", because.BEST),
    Case("priority before latency", FICKLE, [NEAR, node("best", priority=9, latency=0.9)], "best near", because.BEST),
    Case("direct before priority", FICKLE, [node("p", priority=9, direct=False), FAR], "far p", because.BEST),
    Case("nearer before farther", FICKLE, [FAR, NEAR], "near far", because.BEST),
    Case("the id breaks ties", FICKLE, [C, B, A], "a b c", because.BEST),
    Case("no latency is the worst", FICKLE, [node("x", latency=None), FAR], "far x", because.BEST),
    Case("offline after all others", FICKLE, [node("a", online=False), FAR], "far a", because.BEST),
    Case("offline and relayed is better than none", ANY, [node("a", online=False, direct=False)], "a", because.LAST_RESORT),
    # The one in use stays
    Case("a little nearer is not enough", FICKLE, [node("a", latency=0.099), node("b", latency=0.100)],
         "b a", because.STAYS, memory=Memory(current="b")),
    Case("a tenth, but not ten milliseconds", FICKLE, [node("a", latency=0.001), node("b", latency=0.010)],
         "b a", because.STAYS, memory=Memory(current="b")),
    Case("ten milliseconds, but not a tenth", FICKLE, [node("a", latency=0.185), node("b", latency=0.200)],
         "b a", because.STAYS, memory=Memory(current="b")),
    Case("clearly nearer", FICKLE, [NEAR, FAR], "near far", because.BEST, memory=Memory(current="far")),
    Case("direct, and the used one is relayed", FICKLE, [RELAYED, FAR], "far relayed", because.BEST,
         memory=Memory(current="relayed")),
    Case("a higher priority appears", FICKLE, [A, node("b", priority=1)], "b a", because.BEST, memory=Memory(current="a")),
    Case("the used one is lost", FICKLE, [A, B], "a b", because.BEST, {"b": LOST}, Memory(current="b")),
    Case("the used one is broken", FICKLE, [A, B], "a", because.BEST, {"b": BROKEN}, Memory(current="b")),
    Case("the used one has gone", FICKLE, [A], "a", because.BEST, memory=Memory(current="b")),
    Case("the used one is of another policy", wish(sticky=False, country="NL"), [DUTCH, SWISS], "dutch", because.BEST,
         memory=Memory(current="swiss")),
    # Sticky
    Case("used last", ANY, [A, B, C], "b c a", because.RECENT, memory=Memory(pool=POOL)),
    Case("used last, though another is far nearer", ANY, [NEAR, FAR], "far near", because.RECENT, memory=Memory(pool=("far",))),
    Case("used last is lost", ANY, [A, B, C], "c a b", because.RECENT, {"b": LOST}, Memory(pool=POOL)),
    Case("used last is broken", ANY, [A, B, C], "c a", because.RECENT, {"b": BROKEN}, Memory(pool=POOL)),
    Case("used last is offline", ANY, [A, node("b", online=False), C], "c a b", because.RECENT, memory=Memory(pool=POOL)),
    Case("used last has gone", ANY, [A, C], "c a", because.RECENT, memory=Memory(pool=POOL)),
    Case("the whole pool has gone", ANY, [A, D], "a d", because.BEST, memory=Memory(pool=POOL)),
    Case("the whole pool is lost", ANY, [A, B, C], "a b c", because.BEST, {"b": LOST, "c": LOST}, Memory(pool=POOL)),
    Case("what is not sticky has no pool", FICKLE, [A, B, C], "a b c", because.BEST, memory=Memory(pool=POOL)),
    # Off the relay
    Case("relayed, and a member is direct for long", ANY, [RELAYED, A], "a relayed", because.OFF_RELAY,
         {"a": direct_since(5)}, Memory(pool=("relayed", "a"))),
    Case("relayed, and a member is direct for a moment", ANY, [RELAYED, A], "relayed a", because.RECENT,
         {"a": direct_since(4.9)}, Memory(pool=("relayed", "a"))),
    Case("relayed, and a stranger is direct for long", ANY, [RELAYED, A], "relayed a", because.RECENT,
         {"a": direct_since(99)}, Memory(pool=("relayed",))),
    Case("relayed, and the direct one is lost", ANY, [RELAYED, A], "relayed a", because.RECENT,
         {"a": Standing(is_lost=True, direct_since=0)}, Memory(pool=("relayed", "a"))),
    Case("direct, and another is direct for longer", ANY, [A, B], "b a", because.RECENT,
         {"a": direct_since(99), "b": direct_since(1)}, Memory(pool=("b", "a"))),
    # Named
    Case("the first of the named", AB, [B, A], "a b", because.NAMED),
    Case("the first has gone", AB, [B, C], "b", because.NAMED),
    Case("the first is lost", AB, [A, B], "b a", because.NAMED, {"a": LOST}),
    Case("the first is broken", AB, [A, B], "b", because.NAMED, {"a": BROKEN}),
    Case("the first is offline", AB, [node("a", online=False), B], "b a", because.NAMED),
    Case("the first is far and relayed", AB, [node("a", direct=False), B], "a b", because.NAMED),
    Case("all named are lost", AB, [A, B, C], "a b", because.LAST_RESORT, {"a": LOST, "b": LOST}),
    Case("all named are broken", AB, [A, B, C], "", "", {"a": BROKEN, "b": BROKEN}),
    Case("no stranger ever", AB, [C, D], "", ""),
    Case("the second was used last", AB, [A, B], "a b", because.NAMED, memory=Memory(current="b", pool=("b", "a"))),
    Case("by full name", wish(nodes=("b.tailnet.test", "a")), [A, B], "b a", because.NAMED),
    Case("the welcome ones of the named", AB, [node("a", welcome=False), B], "b", because.NAMED),
    Case("fallback, not needed", AB_OR_NL, [A, DUTCH], "a dutch", because.NAMED),
    Case("fallback, all named have gone", AB_OR_NL, [DUTCH, SWISS], "dutch", because.FALLBACK),
    Case("fallback before the lost", AB_OR_NL, [A, DUTCH], "dutch a", because.FALLBACK, {"a": LOST}),
    Case("fallback to any", wish(nodes=("a",), fallback=True), [C, D], "c d", because.FALLBACK),
    # Only direct
    Case("only direct", wish(direct_only=True), [RELAYED, FAR], "far", because.BEST),
    Case("only direct, and nobody is", wish(direct_only=True), [RELAYED], "", because.BEST),
    Case("only direct of the named", wish(nodes=("relayed", "a"), direct_only=True), [RELAYED, A], "a", because.NAMED),
    # By hand
    Case("pinned", ANY, [A, B, C], "c", because.PINNED, memory=Memory(pinned="c", pool=POOL)),
    Case("pinned outside the policy", AB, [A, B, C], "c", because.PINNED, memory=Memory(pinned="c")),
    Case("pinned, relayed, and only direct ones are wanted", wish(direct_only=True), [RELAYED, A], "relayed", because.PINNED,
         memory=Memory(pinned="relayed")),
    Case("pinned and lost", ANY, [A, B], "a", because.PINNED, {"a": LOST}, Memory(pinned="a")),
    Case("pinned and broken", ANY, [A, B], "", "", {"a": BROKEN}, Memory(pinned="a")),
    Case("pinned and gone", ANY, [B], "", "", memory=Memory(pinned="a")),
    # Sessions
    Case("a session stays", ANY, [A, B, C], "a b c", because.SESSION, memory=Memory(pool=POOL, session_exit="a"), session="s"),
    Case("a session whose exit is lost moves", ANY, [A, B], "b a", because.SESSION, {"a": LOST},
         Memory(pool=("a", "b"), session_exit="a"), "s"),
    Case("a session of named exits goes by their order", AB, [A, B], "a b", because.NAMED,
         memory=Memory(session_exit="b"), session="s"),
    Case("a session without anybody", ANY, [], "", because.BEST, session="s"),
    Case("a session and only lost exits", ANY, [A], "a", because.LAST_RESORT, {"a": LOST}, session="s"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_selection_is_that_of_the_table(case: Case) -> None:
    found = select(case.policy, case.there, case.standings, case.memory, NOW, case.session)
    assert (" ".join(found.order), found.reason if found.order else case.reason) == (case.order, case.reason)


def test_the_table_has_a_row_for_each_reason() -> None:
    reasons = {value for name, value in vars(because).items() if name.isupper() and isinstance(value, str)}
    assert reasons <= {case.reason for case in CASES}
    assert len(CASES) >= 60


def test_who_is_not_direct_is_named_where_only_direct_ones_are_wanted() -> None:
    found = select(make_policy(direct_only=True), [RELAYED, A], {}, Memory(), NOW)
    assert found == Selection(("a",), because.BEST, ("relayed",))


@pytest.mark.parametrize(
    ("latency", "than", "is_nearer"),
    [
        (0.080, 0.100, True), (0.091, 0.100, False), (0.001, 0.010, False),
        (0.005, 0.0151, True), (None, 0.1, False), (0.1, None, True), (None, None, False), (0.1, 0.1, False),
    ],
)  # fmt: skip
def test_clearly_nearer_is_by_a_tenth_and_ten_milliseconds(
    latency: float | None, than: float | None, is_nearer: bool
) -> None:
    assert is_clearly_nearer(latency, than) is is_nearer


# Laws

names = st.sampled_from("abcdefgh")
candidates = st.lists(
    st.builds(
        node,
        names,
        code=st.sampled_from(["", "nl", "ch"]),
        priority=st.integers(0, 2),
        online=st.booleans(),
        direct=st.booleans(),
        latency=st.one_of(st.none(), st.floats(0.001, 1)),
        welcome=st.booleans(),
    ),
    unique_by=lambda candidate: candidate.key,
    max_size=8,
)
standings = st.dictionaries(
    names, st.builds(Standing, st.booleans(), st.booleans(), st.one_of(st.none(), st.floats(0, NOW)))
)
memories = st.builds(
    Memory, st.just(""), st.one_of(st.just(""), names), st.lists(names, unique=True, max_size=4).map(tuple),
    st.one_of(st.just(""), names),
)  # fmt: skip
policies = st.one_of(
    st.builds(
        make_policy,
        country=st.sampled_from(["", "NL"]),
        sticky=st.booleans(),
        direct_only=st.booleans(),
        pool=st.integers(1, 4),
    ),
    st.builds(
        make_policy, nodes=st.lists(names, unique=True, min_size=1, max_size=3).map(tuple), fallback=st.booleans()
    ),
)
sessions = st.sampled_from(["", "one", "two"])


@given(policies, candidates, standings, memories, sessions)
def test_only_exits_that_fit_and_are_not_broken_are_selected_each_once(
    policy: Policy, there: list[Candidate], remembered: dict[str, Standing], memory: Memory, session: str
) -> None:
    found = select(policy, there, remembered, memory, NOW, session)
    by_key = {candidate.key: candidate for candidate in there}
    assert len(set(found.order)) == len(found.order)
    for key in found.order:
        assert fits(policy, by_key[key])
        assert not remembered.get(key, Standing()).is_broken
        assert by_key[key].is_direct or not policy.direct_only
    usable = {c.key for c in there if fits(policy, c) and not remembered.get(c.key, Standing()).is_broken}
    assert usable == set(found.order) | set(found.relayed), "and nobody who could be used is left out"


@given(policies, candidates, standings, memories, sessions)
def test_a_lost_exit_never_comes_before_one_that_is_not(
    policy: Policy, there: list[Candidate], remembered: dict[str, Standing], memory: Memory, session: str
) -> None:
    by_key = {candidate.key: candidate for candidate in there}
    order = select(policy, there, remembered, memory, NOW, session).order
    lost = [not by_key[key].is_online or remembered.get(key, Standing()).is_lost for key in order]
    assert lost == sorted(lost)


@given(policies, candidates, standings, memories, sessions, st.randoms(use_true_random=False))
def test_the_order_of_the_netmap_does_not_matter(
    policy: Policy,
    there: list[Candidate],
    remembered: dict[str, Standing],
    memory: Memory,
    session: str,
    chance: object,
) -> None:
    shuffled = there.copy()
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    first = select(policy, there, remembered, memory, NOW, session)
    second = select(policy, shuffled, remembered, memory, NOW, session)
    assert (first.order, first.reason) == (second.order, second.reason)


@given(candidates, st.text(min_size=1, max_size=8), st.sets(names))
def test_a_session_moves_only_when_its_exit_is_lost(there: list[Candidate], session: str, fallen: set[str]) -> None:
    policy, all_names = make_policy(pool=4), tuple("abcdefgh")
    healthy = [c._replace(is_online=True, is_welcome=True) for c in there]
    before = select(policy, healthy, {}, Memory(pool=all_names[:4]), NOW, session).order
    if not before:
        return
    memory = Memory(pool=all_names[:4], session_exit=before[0])
    after = select(policy, healthy, dict.fromkeys(fallen, LOST), memory, NOW, session).order
    assert after[0] == before[0] or before[0] in fallen


@given(candidates)
def test_merit_is_a_total_order(there: list[Candidate]) -> None:
    ordered = sorted(there, key=merit)
    directs = [candidate.is_direct for candidate in ordered]
    assert directs == sorted(directs, reverse=True)
