"""`pytailscale doctor`: looks at everything a device stands on, in the order in which it would fail.

Owns the order and the printing; the checks are in `doctor_local.py` and `doctor_tun.py` (this machine) and
`doctor_tailnet.py` (beyond it).
Works without a tailnet too: what cannot be looked at is skipped, and says what it would take.
"""

from __future__ import annotations

import argparse

from tailscale.cli import doctor_local, doctor_login, doctor_tailnet, doctor_tun
from tailscale.cli.exit_codes import FAILED, OK
from tailscale.cli.findings import BAD, GOOD, SKIP, WARN, Check, Finding, bad
from tailscale.cli.screen import Screen
from tailscale.faults import in_option_words
from tailscale.foreign_text import for_terminal

MARKS = {
    GOOD: ("ok  ", "green"),
    WARN: ("warn", "yellow"),
    BAD: ("BAD ", "bold red"),
    SKIP: ("skip", "dim"),
}
TITLE_WIDTH = 13
INDENT = 4 + 2 + TITLE_WIDTH + 2  # of sentences, behind the mark and the title
NARROW_INDENT = 6  # where a sentence stands below its title
LOCAL: tuple[tuple[str, Check], ...] = (
    ("import name", doctor_local.import_name),
    ("Python", doctor_local.python),
    ("dependencies", doctor_local.dependencies),
    ("environment", doctor_local.environment),
    ("state", doctor_local.state),
    ("login", doctor_login.login),
    ("clock", doctor_local.clock),
    ("tun", doctor_tun.tun),
    ("control", doctor_tailnet.control),
)


async def doctor(options: argparse.Namespace, screen: Screen) -> int:
    report = Report(options, screen)
    for title, check in LOCAL:
        screen.show(f"looking at {title} ...")
        try:
            findings = await check(options)
        except Exception as error:
            findings = [bad(error)]
        report.add(title, findings)
    async for title, findings in doctor_tailnet.device_checks(options, screen, has_control=report.is_good("control")):
        report.add(title, findings)
    return report.finish()


class Report:
    """Prints findings as they come, or keeps them for one JSON document."""

    def __init__(self, options: argparse.Namespace, screen: Screen) -> None:
        self._json = options.json
        self._screen = screen
        self._all: list[tuple[str, Finding]] = []

    def add(self, title: str, findings: list[Finding]) -> None:
        for finding in findings:
            self._all.append((title, finding))
            if self._json:
                continue
            self._say(title, finding)
            title = ""

    def _say(self, title: str, finding: Finding) -> None:
        screen, below = self._screen, INDENT if self._screen.is_wide() else NARROW_INDENT
        lines = screen.fitted(for_terminal(in_option_words(finding.sentence)), below)
        head = f"  {title:<{TITLE_WIDTH}}  " if below == INDENT else f"  {title}"
        screen.say(MARKS[finding.verdict], head, lines.pop(0) if below == INDENT else "")
        for line in lines:
            screen.say(" " * below, line)
        if finding.remedy:
            first, *more = screen.fitted(in_option_words(finding.remedy), below + len("try: "))
            screen.say(" " * below, ("try: ", "cyan"), first)
            for line in more:
                screen.say(" " * (below + len("try: ")), line)

    def is_good(self, title: str) -> bool:
        """Whether a check found nothing bad."""
        return all(finding.verdict != BAD for checked, finding in self._all if checked == title)

    def finish(self) -> int:
        verdicts = [finding.verdict for _, finding in self._all]
        problems, doubts = verdicts.count(BAD), verdicts.count(WARN)
        if self._json:
            checks = [{"check": title} | finding.to_dict() for title, finding in self._all]
            self._screen.json({"healthy": not problems, "checks": checks})
        else:
            self._screen.say()
            if problems:
                self._screen.say((f"{problems} problem{'s' * (problems > 1)}", "bold red"), f", {doubts} to look at")
            else:
                self._screen.say(("nothing is wrong", "green"), f", {doubts} to look at" if doubts else "")
        return FAILED if problems else OK
