"""Tasks that change one string in place: Sort, Substitute, PushPop, Rotate, FillWord, ..."""

from __future__ import annotations

from collections import deque

from capax.measuring.procbench.draws import Draws
from capax.measuring.procbench.generators.drawn import Drawn, listed
from capax.measuring.procbench.problem import DIGITS, LETTERS
from capax.measuring.procbench.words import WORDS


def sort(draws: Draws, steps: int) -> Drawn:
    """Swap the next letter of the sorted string to its place; swaps that change nothing drop out.

    Drawn with 5 to 50 letters, whatever the number of steps.
    """
    text = draws.letters(draws.integer(5, 50))
    now, states = list(text), []
    for place, letter in enumerate(sorted(text)):
        found = now.index(letter, place)
        if now[place] != letter:
            now[place], now[found] = letter, now[place]
            states.append("".join(now))
    return Drawn(f"String: {text}", text, states)


def substitute(draws: Draws, steps: int) -> Drawn:
    """Every character has another in the table; one position per step."""
    text = draws.mixed(steps)
    pool = list(LETTERS + DIGITS)
    table = {}
    for key in draws.shuffled(sorted(set(text))):
        pool.remove(key)  # none becomes itself, or one that was listed before
        table[key] = draws.choice(pool)
    new = "".join(table[c] for c in text)
    pairs = "\n".join(f"({old}, {by})" for old, by in table.items())
    states = [new[: i + 1] + text[i + 1 :] for i in range(steps)]
    return Drawn(f"Pairs:\n{pairs}\nString:\n{text}", text, states)


def push_pop(draws: Draws, steps: int) -> Drawn:
    """Push or pop at either end; as many letters as steps, so no pop meets an empty string."""
    text = draws.letters(steps)
    ends = deque(text)
    actions, states = [], []
    for _ in range(steps):
        action = draws.integer(0, 3)
        if action == 0:
            actions.append("pop_left")
            ends.popleft()
        elif action == 1:
            actions.append("pop_right")
            ends.pop()
        else:
            letter = draws.letters(1)
            actions.append(f"push_{'left' if action == 2 else 'right'}({letter})")
            (ends.appendleft if action == 2 else ends.append)(letter)
        states.append("".join(ends))
    return Drawn(f"Initial string: {text}\nActions: {listed(actions)}", text, states)


def rotate(draws: Draws, steps: int) -> Drawn:
    """Rotate a range of two characters or more by one to the right."""
    text = draws.letters(draws.integer(5, 14))
    now, ranges, states = list(text), [], []
    for _ in range(steps):
        end = draws.integer(2, len(now))
        start = draws.integer(0, end - 2)
        now.insert(start, now.pop(end - 1))
        ranges.append((start, end))
        states.append("".join(now))
    return Drawn(f"String:\n{text}\nIndices:\n{listed(ranges)}", text, states)


def fill_word(draws: Draws, steps: int) -> Drawn:
    """Numbered gaps in a line of text, filled in the order of their numbers."""
    words = _window(draws, draws.integer(steps, steps + 10))
    gaps = draws.sample(range(len(words)), steps)  # gaps[k]: where number k + 1 stands
    states = []
    for n_filled in range(steps + 1):
        number = {place: k + 1 for k, place in enumerate(gaps) if k >= n_filled}
        states.append(" ".join(f"[{number[i]}]" if i in number else w for i, w in enumerate(words)))
    pairs = listed([f"({k + 1}, {words[place]})" for k, place in enumerate(gaps)])
    return Drawn(f"Sentence:\n{states[0]}\nList:\n[{pairs}]", states[0], states[1:])


def delete_char(draws: Draws, steps: int) -> Drawn:
    """Remove the first occurrence of one letter per step."""
    text = draws.letters(draws.integer(steps + 1, steps + 20))
    gone = draws.sample(text, steps)
    states, now = [], text
    for letter in gone:
        now = now.replace(letter, "", 1)
        states.append(now)
    lines = "\n".join(f"{i}. {letter}" for i, letter in enumerate(gone, 1))
    return Drawn(f"String: {text}\nSteps: \n{lines}", text, states)


def delete_word(draws: Draws, steps: int) -> Drawn:
    """Remove the first occurrence of one word per step; no word is listed twice."""
    words = _window(draws, draws.integer(steps + 2, 2 * steps + 12))
    different = list(dict.fromkeys(words))
    gone = draws.sample(different, min(steps, len(different)))
    states, now = [], list(words)
    for word in gone:
        now.remove(word)
        states.append(" ".join(now))
    return Drawn(f"Sentence:\n{' '.join(words)}\nWords: [{listed(gone)}]", " ".join(words), states)


def _window(draws: Draws, n: int) -> list[str]:
    start = draws.integer(0, len(WORDS) - n)
    return list(WORDS[start : start + n])


def move_cyclic(draws: Draws, steps: int) -> Drawn:
    """Move x in a ring of 5, 10, ..., 50 places."""
    width = 5 * draws.integer(1, 10)
    place = start = draws.integer(0, width - 1)
    moves, states = [], []
    for _ in range(steps):
        is_right, by = draws.integer(0, 1), draws.integer(1, width)
        moves.append(f" ({'right' if is_right else 'left'}, {by})")
        place = (place + by if is_right else place - by) % width
        states.append(_ring(place, width))
    lines = ",\n".join(moves)
    question = f"Initial array:\n{_ring(start, width)}\nOperations: [\n{lines}\n]"
    return Drawn(question, _ring(start, width), states)


def _ring(place: int, width: int) -> str:
    return "-" * place + "x" + "-" * (width - place - 1)
