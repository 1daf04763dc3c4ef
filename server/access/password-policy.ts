/**
 * What a new password must be. Length is what counts (NIST SP 800-63B); no kinds of
 * characters are prescribed, but what guessers try first is refused: words that half the
 * world uses, runs of neighbours, and the user's own name, alone or strung together.
 */

export const PASSWORD_MIN = 12;
export const PASSWORD_MAX = 128;
/** How much must be left of it without words and runs. */
const UNGUESSED_MIN = 8;
const DIFFERENT_MIN = 6;
/** A shorter name is part of too many words. */
const NAME_MIN = 3;

/** The stems of the commonest passwords, and what this server is called after. */
const COMMON = [
	..."password passwort passwd geheim secret qwerty qwertz azerty letmein welcome".split(
		" ",
	),
	..."changeme default administrator admin master login user guest test iloveyou".split(
		" ",
	),
	..."monkey dragon football baseball basketball superman batman sunshine princess".split(
		" ",
	),
	..."shadow trustno starwars whatever freedom charlie michael jordan hunter".split(
		" ",
	),
	..."summer winter spring autumn january february october november december".split(
		" ",
	),
	..."monday friday computer internet server firmware device woaini huawei otaru".split(
		" ",
	),
].sort((a, b) => b.length - a.length);

/** Neighbours on a keyboard, and in the alphabets. */
const ROWS = [
	"1234567890",
	"qwertyuiop",
	"qwertzuiop",
	"azertyuiop",
	"asdfghjkl",
	"zxcvbnm",
	"yxcvbnm",
	"abcdefghijklmnopqrstuvwxyz",
	"0123456789",
	"1qaz2wsx3edc4rfv5tgb6yhn7ujm",
].flatMap((row) => [row, [...row].reverse().join("")]);
const RUN_MIN = 3;

/** @returns what is wrong with it, as a rule that follows the field's name; undefined: nothing. */
export function passwordFault(
	password: string,
	userName: string,
): string | undefined {
	const length = [...password].length;
	if (length < PASSWORD_MIN || length > PASSWORD_MAX)
		return `must be ${PASSWORD_MIN} to ${PASSWORD_MAX} characters`;
	// As it is hashed, and as a guesser would: without regard to case.
	const plain = password.normalize("NFKC").toLowerCase();
	const name = userName.toLowerCase();
	if (name.length >= NAME_MIN && plain.includes(name))
		return "must not contain the user name";
	if (new Set(plain).size < DIFFERENT_MIN)
		return `must have at least ${DIFFERENT_MIN} different characters`;
	if (/^\d+$/.test(plain)) return "must not consist of digits alone";
	if ([...withoutGuesses(plain)].length < UNGUESSED_MIN)
		return `must have at least ${UNGUESSED_MIN} characters beside common words, runs such as 1234 and repetitions`;
	return undefined;
}

const SUBSTITUTES: Readonly<Record<string, string>> = {
	"0": "o",
	"1": "i",
	"3": "e",
	"4": "a",
	"5": "s",
	"7": "t",
	"@": "a",
	$: "s",
	"!": "i",
};

function withoutGuesses(plain: string): string {
	let rest = plain;
	for (const word of COMMON) rest = without(rest, word);
	return withoutRuns(rest);
}

/** Takes the word out wherever it stands, also as `p4ssw0rd`. */
function without(text: string, word: string): string {
	let rest = text;
	for (;;) {
		const disguised = [...rest]
			.map((sign) => SUBSTITUTES[sign] ?? sign)
			.join("");
		const at = disguised.indexOf(word);
		if (at < 0) return rest;
		rest = rest.slice(0, at) + rest.slice(at + word.length);
	}
}

/** `aaa`, `456` and `asdf` count as one character each. */
function withoutRuns(text: string): string {
	let rest = "";
	for (let at = 0; at < text.length; ) {
		rest += text[at];
		at += runAt(text, at);
	}
	return rest;
}

function runAt(text: string, at: number): number {
	let repeated = 1;
	while (text[at + repeated] === text[at]) repeated++;
	let longest = repeated;
	for (const row of ROWS) {
		let length = 1;
		while (
			at + length < text.length &&
			row.includes(text.slice(at, at + length + 1))
		)
			length++;
		longest = Math.max(longest, length);
	}
	return longest >= RUN_MIN ? longest : 1;
}
