"""Surveys in turn on one crew: the units of the next are under way while the last of the earlier are measured.

One queue of bounded length holds the units of all of them, in the order of the surveys, and results are taken from its
front. So a crew is never without work between two checkpoints, and what is pending does not grow with their number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from typing import Protocol, TypeAlias

from gemma_doctor.checkpoint import open_bytes
from gemma_doctor.errors import DoctorError
from gemma_doctor.inspect.crew import Crew, Pending
from gemma_doctor.inspect.orders import Order, Survey, UnitResults
from gemma_doctor.inspect.units import Unit, cut
from gemma_doctor.inspect.witness import Site, Witness
from gemma_doctor.records import Progress

__all__ = ["AHEAD", "AT_ONCE", "Coming", "Failure", "Watch", "in_turn"]

AHEAD = 4
"""Units under way for each that is measured at one time: nobody waits, and results do not pile up."""

AT_ONCE = 32
"""Surveys under way at once: the files of each are held open here."""

Failure: TypeAlias = DoctorError | OSError
"""What ends one survey, and no other."""

Watch: TypeAlias = Callable[[int], AbstractContextManager[Progress | None]]
"""Who is told how far the survey of that number is, for as long as its results come."""


class Coming(Protocol):
    """An order that may not be known yet: a ``Future`` of one."""

    def done(self) -> bool:
        """Whether it is known."""

    def result(self) -> Order:
        """The order; waits for it."""


class _Turn:
    """One survey under way."""

    def __init__(self, order: Order, crew: Crew) -> None:
        """Opens its files, which are held open to see them change; whoever measures opens them as well."""
        self.order = order
        self._crew = crew
        self._site = Site.of(order.checkpoint, (tensor.file for tensor in order.wanted if tensor.nbytes))
        self._sites: dict[frozenset[str], Site] = {}
        self._files = open_bytes(order.checkpoint)
        try:
            self._files.read_all([(file, 0, 0) for file in self._site.headers])  # none of their bytes
            self._witness = Witness(self._site)
            crew.admit(self._site)
        except BaseException:
            self._files.close()
            raise
        self._work = cut(order.wanted, crew.unit_bytes(sum(tensor.nbytes for tensor in order.wanted)))
        self._under_way: deque[tuple[Unit, Pending]] = deque()
        self._failure: Failure | None = None

    def __len__(self) -> int:
        """Units under way."""
        return len(self._under_way)

    def hand_out(self) -> bool:
        """Gives the crew one more unit; False if there is none, or the crew refuses it."""
        unit = next(self._work, None)
        if unit is None or self._failure is not None:
            return False
        try:
            self._under_way.append((unit, self._crew.submit(self._site_of(unit), unit)))
        except DoctorError as error:  # of this survey, though it may be the turn of another
            self._failure = error
            return False
        return True

    def results(self, refill: Callable[[], None]) -> Iterator[UnitResults]:
        """Units and their records, in order; ``refill`` is called whenever there is room in the queue.

        Raises:
            DoctorError: What measuring a unit raised, or handing it out; or a file is not what it was.
        """
        while self._under_way:
            unit, future = self._under_way.popleft()
            measured = self._crew.wait(future)
            self._witness.hear(measured.seen)
            refill()
            yield unit, measured.parts
        if self._failure is not None:
            raise self._failure
        self._files.check()

    def close(self) -> None:
        """Takes back what nobody has begun, and closes the files."""
        for _, future in self._under_way:
            future.cancel()
        self._under_way.clear()
        self._files.close()

    def _site_of(self, unit: Unit) -> Site:
        """The site of a unit's files: it travels with the unit."""
        files = frozenset(piece.tensor.file for piece in unit)
        if files not in self._sites:
            self._sites[files] = self._site.only(sorted(files))
        return self._sites[files]


class _Line:
    """The surveys under way, the earliest first."""

    def __init__(self, orders: Iterator[Coming], crew: Crew) -> None:
        """Nothing is under way yet.

        Args:
            orders: What is to be surveyed, as it is found out.
            crew: Who measures.
        """
        self._orders, self._crew = orders, crew
        self._coming: Coming | None = None
        self.turns: deque[_Turn | Failure] = deque()

    def fill(self) -> None:
        """Hands out units until enough are under way."""
        while self._under_way() < AHEAD * self._crew.width:
            last = self.turns[-1] if self.turns else None
            if not (isinstance(last, _Turn) and last.hand_out()) and not self._next():
                return

    def close(self) -> None:
        """Ends all that are under way."""
        for turn in self.turns:
            if isinstance(turn, _Turn):
                turn.close()

    def _under_way(self) -> int:
        return sum(len(turn) for turn in self.turns if isinstance(turn, _Turn))

    def _next(self) -> bool:
        """Puts the next survey into the line; False if there is none, or it is not known yet what it is."""
        if len(self.turns) >= AT_ONCE:
            return False
        self._coming = self._coming or next(self._orders, None)
        if self._coming is None or (self.turns and not self._coming.done()):
            return False
        coming, self._coming = self._coming, None
        try:
            self.turns.append(_Turn(coming.result(), self._crew))
        except (DoctorError, OSError) as error:
            self.turns.append(error)
        return True


def in_turn(orders: Iterable[Coming], crew: Crew, watch: Watch) -> Generator[Survey | Failure, None, None]:
    """Surveys one after the other, without a pause between them.

    Law: what each finds is what it finds alone.

    Args:
        orders: What is to be surveyed, as it is found out. The next are asked for as there is room for their units.
        crew: Who measures.
        watch: Who is told how far each survey is.

    Yields:
        For each order, in their order, what was found, or the error that ended it.
    """
    line = _Line(iter(orders), crew)
    try:
        line.fill()
        for number in count():
            if not line.turns:
                return
            yield _outcome(line.turns[0], line.fill, partial(watch, number))
            line.turns.popleft()
            line.fill()
    finally:
        line.close()


def _outcome(
    turn: _Turn | Failure, refill: Callable[[], None], watch: Callable[[], AbstractContextManager[Progress | None]]
) -> Survey | Failure:
    """The end of the survey whose turn it is."""
    if not isinstance(turn, _Turn):
        return turn
    try:
        with watch() as progress:
            return turn.order.gathered(turn.results(refill), progress)
    except (DoctorError, OSError) as error:
        return error
    finally:
        turn.close()
