"""The stopwatch: every piece of work in every round, in turns, and the shortest time of each."""

import time

from paged_core.stopwatch import least_milliseconds


def test_works_take_turns_and_the_shortest_time_counts():
    done, naps = [], iter((0.03, 0.001, 0.03))

    def nap():
        done.append("nap")
        time.sleep(next(naps))

    least = least_milliseconds({"nap": nap, ("nothing", 1): lambda: done.append("nothing")}, rounds=3)
    assert done == ["nap", "nothing"] * 3
    assert set(least) == {"nap", ("nothing", 1)}
    assert 1 <= least["nap"] < 30
    assert least["nothing", 1] < least["nap"]
