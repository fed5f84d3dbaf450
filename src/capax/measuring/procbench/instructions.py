"""What each task asks, in our own words; the published wording comes with the published files."""

from __future__ import annotations

from collections.abc import Mapping

_STATES = (
    "Give the final {final}, and the list of intermediate {states}, one after each step. "
    "The list holds neither the initial state nor the final one."
)


def _task(procedure: str, final: str, states: str) -> str:
    return f"{procedure}\n{_STATES.format(final=final, states=states)}"


INSTRUCTIONS: Mapping[str, str] = {
    "Sort": _task(
        "Sort a string alphabetically by swapping two characters at a time.\n"
        "Take the letters from 'a' to 'z' in turn. Search the string from the current position to "
        "its end; wherever you find the letter, swap it with the character at the current position "
        "and move the current position one to the right. The current position is first the "
        "beginning of the string. A swap that does not change the string is no step.",
        "string",
        "strings",
    ),
    "Gather": _task(
        "Start with an empty string. For each triple (N, i, n), in order, take n characters of the "
        "N-th string from its i-th character on, and append them. N and i count from 0.",
        "string",
        "strings",
    ),
    "Count": _task(
        "For each string, in order, let N1 be the number of its letters, N2 the number that its "
        "digits make when they are joined in order (0 if it has none), and N3 the product of N1 "
        "and N2. As the last step, add up all N3.",
        "sum",
        'rows ["string", "N1", "N2", "N3"]',
    ),
    "Search": _task(
        "Start with one counter of 0 for each string. For each substring, in order, count how "
        "often it occurs in each string, and add that to the string's counter.",
        "list of counters",
        "lists of counters",
    ),
    "Copy": _task(
        "Start with an empty string. For each index, in order, append the string with that index. "
        "Indices count from 0.",
        "string",
        "strings",
    ),
    "Substitute": _task(
        "Go through the string from left to right, one character per step. If the character is the "
        "first element of a pair, replace it by the second element of that pair.",
        "string",
        "strings",
    ),
    "Encode": _task(
        "Encode a string of '0' and '1'. From its beginning, one run of equal characters per step, "
        "append the character, '_' and the length of the run to the list of results.",
        "list of results",
        "lists of results",
    ),
    "Split1": _task(
        "Cut a string at the given positions, in the order given. A cut at position i falls "
        "between characters i-1 and i of the original string, which count from 0.",
        "list of pieces",
        "lists of pieces",
    ),
    "Split2": _task(
        "Cut a string at the given pairs (i, j), in order: cut the i-th piece of the present list "
        "in two, so that the first part has j characters. Pieces count from 0.",
        "list of pieces",
        "lists of pieces",
    ),
    "Compose": _task(
        "Replace neighbours in a list by rules until no rule fits. A rule 'A, B -> C' replaces A "
        "directly followed by B with C, never B followed by A. At each step, search from the right "
        "end of the list and replace the first pair that a rule fits.",
        "list",
        "lists",
    ),
    "Decompose": _task(
        "Replace characters of a string by rules until no rule fits. A rule 'A -> BC' replaces A "
        "with B and C. At each step, search from the left and replace the first character that a "
        "rule fits.",
        "string",
        "strings",
    ),
    "Rhythm": _task(
        "Start with an empty string. At each of N steps, append the next element of sequence 1 and "
        "then the next element of sequence 2. A sequence that is at its end begins again.",
        "string",
        "strings",
    ),
    "Compare": (
        "Compare a target with the candidates in order. For each candidate, note the longest "
        "beginning that it shares with the target. Stop at the first candidate that equals the "
        "target.\nThe intermediate states are the beginnings noted before the match. The final "
        "state is the list of all of them, with the target itself as its last element; the list of "
        "intermediate states does not hold the final one."
    ),
    "Count2": _task(
        "Count the letters of a sentence word by word, upper and lower case alike. A state is the "
        "list of the 26 counts so far, from 'a' to 'z', zeros included; it is noted after each "
        "word.",
        "list of counts",
        "lists of counts",
    ),
    "Decode": _task(
        "Start with an empty string. For each piece AxB, in order, append A, B times.",
        "string",
        "strings",
    ),
    "PushPop": _task(
        "Carry out the actions on a string, in order. pop_left removes its first character and "
        "pop_right its last; push_left(A) puts A before it and push_right(A) behind it.",
        "string",
        "strings",
    ),
    "Rotate": _task(
        "For each pair (m, n), in order, take the characters from index m to n-1 of the string, "
        "counting from 0, and shift them one to the right; the last of them becomes the first.",
        "string",
        "strings",
    ),
    "FillWord": _task(
        "In a sentence, replace the number in brackets of each pair, in order, with the word of "
        "that pair. Use no punctuation besides these brackets.",
        "sentence",
        "sentences",
    ),
    "DeleteChar": _task(
        "From a string, remove the listed letters, in order, one per step: always the first place "
        "where the letter occurs.",
        "string",
        "strings",
    ),
    "DeleteWord": _task(
        "From a sentence, remove the listed words, in order, one per step: always the first place "
        "where the word occurs.",
        "sentence",
        "sentences",
    ),
    "Cumulate": _task(
        "Start with the number N and carry out the operations on it, in order.",
        "number",
        "numbers",
    ),
    "MoveCyclic": _task(
        "Move the 'x' in an array of 'x' and '-' by the operations, in order: a direction, and by "
        "how many places. Beyond one end of the array it comes in at the other.",
        "array",
        "arrays",
    ),
    "FindCyclic": _task(
        "You are given a string and a command: a character of it, and a number. At each step, move "
        "to the character right of the present one, from the last to the first, and lower the "
        "number by one, until it is zero. A state is the pair [character, number]; the final state "
        "is the character alone.",
        "character",
        "pairs",
    ),
}
