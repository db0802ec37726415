//! Options of Pacemaker's commands, as its own parser reads them.

use super::Tool;
use std::collections::BTreeMap;

/// Something that none of its commands has, or that this one does not do here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not known here, where Quorate answers in the place of Pacemaker")]
pub(super) struct Unknown(String);

/// What an option is followed by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Value,
    /// Only in the same word: `-pNAME`, `--promotion=NAME`.
    Perhaps,
}

use Takes::{Nothing, Perhaps, Value};

/// The letter under which it is asked for, how it is written, and what follows.
type Known = (char, &'static [&'static str], Takes);

const ATTRIBUTE: &[Known] = &[
    ('N', &["-N", "-U", "--node", "--uname"], Value),
    ('n', &["-n", "--name"], Value),
    ('v', &["-v", "--update"], Value),
    ('l', &["-l", "--lifetime"], Value),
    ('p', &["-p", "-P", "--promotion"], Perhaps),
    ('G', &["-G", "--query"], Nothing),
    ('D', &["-D", "--delete"], Nothing),
    ('q', &["-q", "-Q", "--quiet"], Nothing),
];

const UPDATER: &[Known] = &[
    ('N', &["-N", "--node"], Value),
    ('n', &["-n", "--name"], Value),
    ('v', &["-v", "-U", "--update"], Value),
    ('d', &["-d", "--delay"], Value),
    ('Q', &["-Q", "--query"], Nothing),
    ('D', &["-D", "--delete"], Nothing),
    ('P', &["-p", "--private"], Nothing),
    ('q', &["-q", "--quiet"], Nothing),
];

const NODE: &[Known] = &[
    ('n', &["-n", "--name"], Nothing),
    ('l', &["-l", "--list"], Nothing),
    ('p', &["-p", "--partition"], Nothing),
    ('q', &["-q", "--quorum"], Nothing),
];

const MON: &[Known] = &[
    ('1', &["-1", "--one-shot"], Nothing),
    ('r', &["-r", "--inactive"], Nothing),
    ('n', &["-n", "--group-by-node"], Nothing),
    ('A', &["-A", "--show-node-attributes"], Nothing),
    ('X', &["-X", "--as-xml", "--output-as=xml"], Nothing),
];

const RESOURCE: &[Known] = &[
    ('B', &["-B", "--ban"], Nothing),
    ('r', &["-r", "--resource"], Value),
    ('N', &["-N", "--node"], Value),
    ('q', &["-q", "-Q", "--quiet"], Nothing),
];

const DAEMON: &[Known] = &[('V', &["-$", "--version"], Nothing)];

/// What was given, by the letter of each option.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options(BTreeMap<char, Option<String>>);

impl Options {
    pub(super) fn read(tool: Tool, words: &[String]) -> Result<Options, Unknown> {
        let known = match tool {
            Tool::Attribute | Tool::Master => ATTRIBUTE,
            Tool::Updater => UPDATER,
            Tool::Node => NODE,
            Tool::Mon => MON,
            Tool::Resource => RESOURCE,
            Tool::Daemon => DAEMON,
        };
        let (mut given, mut words) = (Options::default(), words.iter());
        while let Some(word) = words.next() {
            given.read_one(known, word, &mut words)?;
        }
        Ok(given)
    }

    fn read_one<'a>(
        &mut self,
        known: &[Known],
        word: &str,
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), Unknown> {
        let unknown = || Unknown(word.to_owned());
        if let Some((letter, _, takes)) = known.iter().find(|(_, written, _)| written.contains(&word)) {
            let value = if *takes == Value { Some(rest.next().ok_or_else(unknown)?.clone()) } else { None };
            self.0.insert(*letter, value);
            return Ok(());
        }
        if let Some((long, value)) = word.split_once('=').filter(|(long, _)| long.starts_with("--")) {
            let option = known.iter().find(|(_, written, takes)| written.contains(&long) && *takes != Nothing);
            let (letter, ..) = option.ok_or_else(unknown)?;
            self.0.insert(*letter, Some(value.to_owned()));
            return Ok(());
        }
        // Several letters in one word, the last of which may have its value in it.
        let letters = word.strip_prefix('-').filter(|letters| !letters.starts_with('-')).ok_or_else(unknown)?;
        for (at, letter) in letters.char_indices() {
            let short = format!("-{letter}");
            let option = known.iter().find(|(_, written, _)| written.contains(&short.as_str()));
            let (letter, _, takes) = option.ok_or_else(unknown)?;
            let value = &letters[at + short.len() - 1..];
            match takes {
                Nothing => _ = self.0.insert(*letter, None),
                Value | Perhaps => {
                    let value = (!value.is_empty()).then(|| value.to_owned());
                    let value = if *takes == Value && value.is_none() { rest.next().cloned() } else { value };
                    self.0.insert(*letter, value);
                    return Ok(());
                }
            }
        }
        if letters.is_empty() { Err(unknown()) } else { Ok(()) }
    }

    pub(super) fn has(&self, letter: char) -> bool {
        self.0.contains_key(&letter)
    }

    pub(super) fn value(&self, letter: char) -> Option<&str> {
        self.0.get(&letter)?.as_deref()
    }
}
