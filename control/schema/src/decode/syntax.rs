//! Says what is wrong with a text that is not JSON, in the words of Go's scanner. Runs only after the reader failed.

use super::MAX_DEPTH;

/// `unexpected end of JSON input` and the like; `None` if the text is one JSON value after all.
pub(super) fn complaint(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner { text, at: 0 };
    match scanner.document() {
        Ok(()) => None,
        Err(Wrong::End) => Some("unexpected end of JSON input".to_owned()),
        Err(Wrong::Depth) => Some("exceeded max depth".to_owned()),
        Err(Wrong::Character(context)) => {
            let byte = text.get(scanner.at).copied().unwrap_or_default();
            Some(format!("invalid character {} {context}", quote(byte)))
        }
    }
}

/// Go's `quoteChar`: a byte taken for a character of its own.
fn quote(byte: u8) -> String {
    match byte {
        b'\'' => "'\\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => "'\\\\'".to_owned(),
        b'\n' => "'\\n'".to_owned(),
        b'\r' => "'\\r'".to_owned(),
        b'\t' => "'\\t'".to_owned(),
        0x07 => "'\\a'".to_owned(),
        0x08 => "'\\b'".to_owned(),
        0x0b => "'\\v'".to_owned(),
        0x0c => "'\\f'".to_owned(),
        0..0x20 | 0x7f => format!("'\\x{byte:02x}'"),
        0x80..0xa0 | 0xad => format!("'\\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}

enum Wrong {
    End,
    Depth,
    Character(String),
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

fn wrong<T>(context: &str) -> Result<T, Wrong> {
    Err(Wrong::Character(context.to_owned()))
}

impl Scanner<'_> {
    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Result<u8, Wrong> {
        self.text.get(self.at).copied().ok_or(Wrong::End)
    }

    fn document(&mut self) -> Result<(), Wrong> {
        // One entry an open object (true) or array (false).
        let mut open: Vec<bool> = Vec::new();
        loop {
            self.space();
            match self.peek()? {
                b'{' => {
                    self.at += 1;
                    self.space();
                    if self.peek()? == b'}' {
                        self.at += 1;
                    } else {
                        open.push(true);
                        self.key()?;
                        if open.len() > MAX_DEPTH {
                            return Err(Wrong::Depth);
                        }
                        continue;
                    }
                }
                b'[' => {
                    self.at += 1;
                    self.space();
                    if self.peek()? == b']' {
                        self.at += 1;
                    } else {
                        open.push(false);
                        if open.len() > MAX_DEPTH {
                            return Err(Wrong::Depth);
                        }
                        continue;
                    }
                }
                b'"' => self.string()?,
                b't' => self.literal("true")?,
                b'f' => self.literal("false")?,
                b'n' => self.literal("null")?,
                b'-' | b'0'..=b'9' => self.number()?,
                _ => return wrong("looking for beginning of value"),
            }
            // A value ended: close what ends here.
            loop {
                self.space();
                let Some(in_object) = open.last().copied() else {
                    return if self.at == self.text.len() {
                        Ok(())
                    } else {
                        wrong("after top-level value")
                    };
                };
                match (self.peek()?, in_object) {
                    (b',', true) => {
                        self.at += 1;
                        self.space();
                        self.key()?;
                        break;
                    }
                    (b',', false) => {
                        self.at += 1;
                        break;
                    }
                    (b'}', true) | (b']', false) => {
                        self.at += 1;
                        open.pop();
                    }
                    (_, true) => return wrong("after object key:value pair"),
                    (_, false) => return wrong("after array element"),
                }
            }
        }
    }

    fn key(&mut self) -> Result<(), Wrong> {
        if self.peek()? != b'"' {
            return wrong("looking for beginning of object key string");
        }
        self.string()?;
        self.space();
        if self.peek()? != b':' {
            return wrong("after object key");
        }
        self.at += 1;
        Ok(())
    }

    fn string(&mut self) -> Result<(), Wrong> {
        self.at += 1;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => {
                    self.at += 1;
                    match self.peek()? {
                        b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => self.at += 1,
                        b'u' => {
                            self.at += 1;
                            for _ in 0..4 {
                                if !self.peek()?.is_ascii_hexdigit() {
                                    return wrong("in \\u hexadecimal character escape");
                                }
                                self.at += 1;
                            }
                        }
                        _ => return wrong("in string escape code"),
                    }
                }
                0..0x20 => return wrong("in string literal"),
                _ => self.at += 1,
            }
        }
    }

    fn literal(&mut self, word: &str) -> Result<(), Wrong> {
        for expected in word.bytes() {
            if self.peek()? != expected {
                let expected = char::from(expected);
                return wrong(&format!("in literal {word} (expecting '{expected}')"));
            }
            self.at += 1;
        }
        Ok(())
    }

    fn digits(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }

    fn number(&mut self) -> Result<(), Wrong> {
        if self.peek()? == b'-' {
            self.at += 1;
        }
        match self.peek()? {
            b'0' => self.at += 1,
            b'1'..=b'9' => self.digits(),
            _ => return wrong("in numeric literal"),
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            if !self.peek()?.is_ascii_digit() {
                return wrong("after decimal point in numeric literal");
            }
            self.digits();
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek()?, b'+' | b'-') {
                self.at += 1;
            }
            if !self.peek()?.is_ascii_digit() {
                return wrong("in exponent of numeric literal");
            }
            self.digits();
        }
        Ok(())
    }
}
