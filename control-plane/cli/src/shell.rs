//! Words for a shell, so that a printed command works as it is.

/// `word` quoted where a shell would take it apart or replace it.
pub(crate) fn shell_word(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/.-_:@%+=,".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::shell_word;

    #[test]
    fn odd_paths_are_one_word_to_a_shell() {
        assert_eq!(shell_word("a/b.pem"), "a/b.pem");
        assert_eq!(shell_word("my dir/it's"), r"'my dir/it'\''s'");
        assert_eq!(shell_word("*.wild"), "'*.wild'");
    }
}
