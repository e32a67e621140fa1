//! nginx's configuration as directives, with its includes in their places.

use std::path::{Path, PathBuf};

use super::super::found::{CONFIG_BYTES_MAX, Files, Skipped, entries};
use crate::failure::{Failure, Outcome};

/// Blocks within blocks.
const DEPTH_MAX: usize = 16;
/// Files that include files.
const INCLUDE_DEPTH_MAX: usize = 8;
/// Files in all: hosters have one for each site.
const FILES_MAX: usize = 50_000;
/// Directives in all.
const DIRECTIVES_MAX: usize = 4_000_000;

/// One directive, with its block if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directive {
    pub(super) name: String,
    pub(super) words: Vec<String>,
    pub(super) block: Vec<Self>,
    /// File and line, for people.
    pub(super) at: String,
}

impl Directive {
    /// Its only word.
    pub(super) fn word(&self) -> Option<&str> {
        match self.words.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }
}

/// Those of a name.
pub(super) fn named<'a>(block: &'a [Directive], name: &'a str) -> impl Iterator<Item = &'a Directive> {
    block.iter().filter(move |directive| directive.name == name)
}

/// A configuration that is being read.
pub(super) struct Loader<'a> {
    pub(super) files: &'a Files,
    /// Where relative paths begin: the folder of nginx.conf.
    pub(super) prefix: PathBuf,
    pub(super) skipped: Vec<Skipped>,
    read: usize,
    directives: usize,
}

impl<'a> Loader<'a> {
    pub(super) fn new(files: &'a Files, prefix: PathBuf) -> Self {
        Self { files, prefix, skipped: Vec::new(), read: 0, directives: 0 }
    }

    /// # Errors
    /// The file is not there or is no configuration of nginx's, or there is too much.
    pub(super) fn load(&mut self, file: &Path) -> Outcome<Vec<Directive>> {
        let text = self.files.read(file, CONFIG_BYTES_MAX).map_err(Failure::failed)?;
        let directives = parse(&text, &file.display().to_string()).map_err(Failure::failed)?;
        self.included(directives, 0)
    }

    /// Puts what is included in the place of each include. A file that cannot be read is told and left out.
    fn included(&mut self, directives: Vec<Directive>, depth: usize) -> Outcome<Vec<Directive>> {
        let mut all = Vec::with_capacity(directives.len());
        for mut directive in directives {
            self.directives += 1;
            if self.directives > DIRECTIVES_MAX {
                return Err(Failure::failed(format!("more than {DIRECTIVES_MAX} directives")));
            }
            if directive.name != "include" {
                directive.block = self.included(directive.block, depth)?;
                all.push(directive);
                continue;
            }
            let pattern = directive.words.join(" ");
            if depth >= INCLUDE_DEPTH_MAX {
                self.skip(
                    format!("include {pattern}"),
                    format!("{}: includes are nested too deeply", directive.at),
                );
                continue;
            }
            for file in self.matching(&pattern, &directive.at)? {
                self.read += 1;
                if self.read > FILES_MAX {
                    return Err(Failure::failed(format!("more than {FILES_MAX} files are included")));
                }
                let text = self.files.read(&file, CONFIG_BYTES_MAX);
                match text.and_then(|text| parse(&text, &file.display().to_string())) {
                    Ok(inner) => all.extend(self.included(inner, depth + 1)?),
                    Err(why) => self.skip(file.display().to_string(), why),
                }
            }
        }
        Ok(all)
    }

    /// The files of a pattern with `*` and `?` in its last part.
    fn matching(&mut self, pattern: &str, at: &str) -> Outcome<Vec<PathBuf>> {
        let path = self.here(pattern);
        let last = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        if !last.contains(['*', '?']) {
            return Ok(vec![path]);
        }
        if folder.to_string_lossy().contains(['*', '?']) || !folder.is_dir() {
            self.skip(format!("include {pattern}"), format!("{at}: {} is no folder", folder.display()));
            return Ok(Vec::new());
        }
        let names = entries(&folder)?;
        // As a shell has it: hidden files only where the pattern says so.
        let is_meant =
            |name: &&String| is_match(&last, name) && (last.starts_with('.') || !name.starts_with('.'));
        Ok(names.iter().filter(is_meant).map(|name| folder.join(name)).collect())
    }

    /// A path of the configuration, here.
    pub(super) fn here(&self, path: &str) -> PathBuf {
        if path.starts_with('/') { self.files.here(Path::new(path)) } else { self.prefix.join(path) }
    }

    fn skip(&mut self, what: String, why: String) {
        self.skipped.push(Skipped { what, why });
    }
}

/// Whether `*` and `?` of a pattern make it the name. Linear but for one step back to the last `*`.
fn is_match(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut of, mut star) = (0, 0, None);
    while of < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, of));
                at += 1;
            }
            Some(c) if *c == '?' || *c == name[of] => (at, of) = (at + 1, of + 1),
            _ => match star {
                None => return false,
                Some((star_at, star_of)) => {
                    star = Some((star_at, star_of + 1));
                    (at, of) = (star_at + 1, star_of + 1);
                }
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    End,
    Open,
    Close,
}

/// # Errors
/// In words, with file and line.
pub(super) fn parse(text: &str, file: &str) -> Result<Vec<Directive>, String> {
    let mut stack: Vec<Vec<Directive>> = vec![Vec::new()];
    let mut words: Vec<String> = Vec::new();
    let mut began = 0;
    for (token, line) in tokens(text, file)? {
        match token {
            Token::Word(word) => {
                if words.is_empty() {
                    began = line;
                }
                words.push(word);
            }
            Token::End | Token::Open => {
                let mut rest = std::mem::take(&mut words).into_iter();
                let Some(name) = rest.next() else {
                    return Err(format!("{file}:{line}: a directive has no name"));
                };
                let directive = Directive {
                    name,
                    words: rest.collect(),
                    block: Vec::new(),
                    at: format!("{file}:{began}"),
                };
                stack.last_mut().ok_or("no block")?.push(directive);
                if token == Token::Open {
                    stack.push(Vec::new());
                }
                if stack.len() > DEPTH_MAX {
                    return Err(format!("{file}:{line}: blocks are nested too deeply"));
                }
            }
            Token::Close => {
                let block = stack.pop().unwrap_or_default();
                match stack.last_mut().and_then(|outer| outer.last_mut()) {
                    Some(owner) if words.is_empty() => owner.block = block,
                    _ => return Err(format!("{file}:{line}: a block ends that did not begin")),
                }
            }
        }
    }
    match (stack.pop(), stack.is_empty(), words.is_empty()) {
        (Some(all), true, true) => Ok(all),
        _ => Err(format!("{file}: it ends in the middle of a directive")),
    }
}

fn tokens(text: &str, file: &str) -> Result<Vec<(Token, usize)>, String> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = text.chars().peekable();
    while let Some(&c) = rest.peek() {
        match c {
            '\n' => line += 1,
            _ if c.is_whitespace() => {}
            '#' => {
                while rest.peek().is_some_and(|c| *c != '\n') {
                    rest.next();
                }
                continue;
            }
            ';' => tokens.push((Token::End, line)),
            '{' => tokens.push((Token::Open, line)),
            '}' => tokens.push((Token::Close, line)),
            '"' | '\'' => {
                rest.next();
                let began = line;
                let word = quoted(&mut rest, c, &mut line);
                tokens.push((Token::Word(word.ok_or_else(|| unclosed(file, began))?), began));
                continue;
            }
            _ => {
                tokens.push((Token::Word(plain(&mut rest)), line));
                continue;
            }
        }
        rest.next();
    }
    Ok(tokens)
}

fn unclosed(file: &str, line: usize) -> String {
    format!("{file}:{line}: a quote is opened here and never closed")
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn quoted(rest: &mut Chars<'_>, quote: char, line: &mut usize) -> Option<String> {
    let mut word = String::new();
    loop {
        match rest.next()? {
            c if c == quote => return Some(word),
            '\\' => match rest.next()? {
                c if c == quote || c == '\\' => word.push(c),
                'n' => word.push('\n'),
                't' => word.push('\t'),
                'r' => word.push('\r'),
                c => word.extend(['\\', c]),
            },
            c => {
                *line += usize::from(c == '\n');
                word.push(c);
            }
        }
    }
}

fn plain(rest: &mut Chars<'_>) -> String {
    let mut word = String::new();
    while let Some(&c) = rest.peek() {
        // ${name} is one word.
        let in_variable = c == '{' && word.ends_with('$');
        if c.is_whitespace() || c == ';' || (c == '{' && !in_variable) {
            break;
        }
        if c == '}' && word.rfind("${").is_none_or(|at| word[at..].contains('}')) {
            break;
        }
        word.push(c);
        rest.next();
        if c == '\\' {
            word.extend(rest.next());
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_blocks_quotes_and_comments_are_told_apart() {
        let text = "# a; b { c\nuser www-data;\nhttp {\n  log_format x '$a \"$b\" {';\n  server { # d }\n    server_name a.test \
                    b.test;\n    return 301 https://$host${request_uri};\n  }\n}\n";
        let read = parse(text, "n").unwrap();
        assert_eq!(
            (read[0].name.as_str(), read[0].word(), read[0].at.as_str()),
            ("user", Some("www-data"), "n:2")
        );
        let http = &read[1].block;
        assert_eq!(http[0].words, ["x", "$a \"$b\" {"]);
        let server = &http[1].block;
        assert_eq!(server[0].words, ["a.test", "b.test"]);
        assert_eq!(server[1].words, ["301", "https://$host${request_uri}"]);
    }

    #[test]
    fn half_a_file_is_refused_with_its_place() {
        for (text, words) in [
            ("a {", "ends in the middle"),
            ("a b", "ends in the middle"),
            ("}", "n:1: a block ends"),
            ("a 'b", "n:1: a quote is opened"),
            (";", "n:1: a directive has no name"),
        ] {
            let told = parse(text, "n").unwrap_err();
            assert!(told.contains(words), "{text}: {told}");
        }
        let deep = "a {".repeat(30);
        assert!(parse(&deep, "n").unwrap_err().contains("too deeply"));
    }

    #[test]
    fn includes_are_put_in_their_places_and_never_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("sites")).unwrap();
        std::fs::write(at("nginx.conf"), "a 1; include sites/*.conf; include gone.conf; b 2;").unwrap();
        std::fs::write(at("sites/one.conf"), "c 3; include sites/one.conf;").unwrap();
        std::fs::write(at("sites/two.conf~"), "d 4;").unwrap();
        std::fs::write(at("sites/.three.conf"), "d 5;").unwrap();
        let files = Files::default();
        let mut loader = Loader::new(&files, folder.path().to_owned());
        let read = loader.load(&at("nginx.conf")).unwrap();
        let names: Vec<&str> = read.iter().map(|directive| directive.name.as_str()).collect();
        assert_eq!(names, [vec!["a"], vec!["c"; INCLUDE_DEPTH_MAX], vec!["b"]].concat());
        let told: Vec<&str> = loader.skipped.iter().map(|skipped| skipped.why.as_str()).collect();
        assert!(told[0].contains("too deeply") && told[1].contains("gone.conf"), "{told:?}");
    }

    #[test]
    fn patterns_match_as_a_shell_has_it() {
        for (pattern, name, matches) in [
            ("*.conf", "a.conf", true),
            ("*.conf", "a.conf~", false),
            ("*", "a", true),
            ("a?c*", "abcde", true),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbX", false),
            ("a", "b", false),
        ] {
            assert_eq!(is_match(pattern, name), matches, "{pattern} {name}");
        }
    }
}
