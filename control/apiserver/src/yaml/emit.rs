//! YAML as go-yaml v2 writes it, by way of sigs.k8s.io/yaml: which strings are quoted and how, where lines are folded,
//! lists as deep as their key, keys in its order.

use std::cmp::Ordering;

use serde_json::{Map, Value};

/// A line is folded at the first space beyond this column.
const WIDTH: usize = 80;
/// Longer keys are no simple ones.
const MAX_SIMPLE_KEY_BYTES: usize = 128;

pub fn to_string(value: &Value) -> String {
    let mut emitter = Emitter::default();
    match value {
        Value::Object(map) if !map.is_empty() => emitter.mapping(map, 0),
        Value::Array(list) if !list.is_empty() => emitter.sequence(list, 0),
        other => {
            emitter.scalar(other, 2, false);
            emitter.end_line();
        }
    }
    emitter.out
}

#[derive(Default)]
struct Emitter {
    out: String,
    /// Characters since the last line break.
    column: usize,
}

impl Emitter {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
        match text.rsplit_once('\n') {
            Some((_, last)) => self.column = last.chars().count(),
            None => self.column += text.chars().count(),
        }
    }

    fn indent(&mut self, indent: usize) {
        self.end_line();
        self.put(&" ".repeat(indent));
    }

    fn end_line(&mut self) {
        if self.column > 0 {
            self.put("\n");
        }
    }

    /// The first entry goes on in a line that has begun with `- `.
    fn mapping(&mut self, map: &Map<String, Value>, indent: usize) {
        let mut entries: Vec<(&String, &Value)> = map.iter().collect();
        entries.sort_by(|(left, _), (right, _)| key_order(left, right));
        for (i, (key, value)) in entries.into_iter().enumerate() {
            if i > 0 || self.column != indent {
                self.indent(indent);
            }
            let simple = key.len() <= MAX_SIMPLE_KEY_BYTES;
            if !simple {
                self.put("? ");
            }
            self.text(key, indent + 2, simple);
            if !simple {
                self.indent(indent);
            }
            self.put(":");
            match value {
                Value::Object(map) if !map.is_empty() => {
                    self.indent(indent + 2);
                    self.mapping(map, indent + 2);
                }
                Value::Array(list) if !list.is_empty() => {
                    self.indent(indent);
                    self.sequence(list, indent);
                }
                other => {
                    self.put(" ");
                    self.scalar(other, indent + 2, false);
                    self.end_line();
                }
            }
        }
    }

    fn sequence(&mut self, list: &[Value], indent: usize) {
        for (i, item) in list.iter().enumerate() {
            if i > 0 || self.column != indent {
                self.indent(indent);
            }
            self.put("- ");
            match item {
                Value::Object(map) if !map.is_empty() => self.mapping(map, indent + 2),
                Value::Array(list) if !list.is_empty() => self.sequence(list, indent + 2),
                other => {
                    self.scalar(other, indent + 2, false);
                    self.end_line();
                }
            }
        }
    }

    fn scalar(&mut self, value: &Value, indent: usize, key: bool) {
        match value {
            Value::String(text) => self.text(text, indent, key),
            Value::Object(_) => self.put("{}"),
            Value::Array(_) => self.put("[]"),
            other => self.put(&other.to_string()),
        }
    }

    fn text(&mut self, text: &str, indent: usize, key: bool) {
        match Style::of(text, key) {
            Style::Plain => self.folded(text, indent, key, false),
            Style::Single => {
                self.put("'");
                self.folded(&text.replace('\'', "''"), indent, key, true);
                self.put("'");
            }
            Style::Double => self.double(text, indent, key),
            Style::Literal => self.literal(text, indent),
        }
    }

    /// Text with its spaces, one of which becomes a line break where the line is too long.
    fn folded(&mut self, text: &str, indent: usize, key: bool, quoted: bool) {
        let mut spaces = false;
        let mut rest = text.char_indices().peekable();
        while let Some((at, c)) = rest.next() {
            let next_is_space = rest.peek().is_some_and(|(_, next)| *next == ' ');
            let inside = !quoted || (at > 0 && at + 1 < text.len());
            if c == ' ' && !key && !spaces && self.column > WIDTH && inside && !next_is_space {
                self.indent(indent);
            } else {
                self.put(c.encode_utf8(&mut [0; 4]));
            }
            spaces = c == ' ';
        }
    }

    fn double(&mut self, text: &str, indent: usize, key: bool) {
        self.put("\"");
        let mut spaces = false;
        let mut rest = text.char_indices().peekable();
        while let Some((at, c)) = rest.next() {
            let next_is_space = rest.peek().is_some_and(|(_, next)| *next == ' ');
            let inside = at > 0 && at + 1 < text.len();
            match c {
                ' ' if !key && !spaces && self.column > WIDTH && inside => {
                    self.indent(indent);
                    if next_is_space {
                        self.put("\\");
                    }
                }
                '"' => self.put("\\\""),
                '\\' => self.put("\\\\"),
                '\0' => self.put("\\0"),
                '\u{7}' => self.put("\\a"),
                '\u{8}' => self.put("\\b"),
                '\t' => self.put("\\t"),
                '\n' => self.put("\\n"),
                '\u{b}' => self.put("\\v"),
                '\u{c}' => self.put("\\f"),
                '\r' => self.put("\\r"),
                '\u{1b}' => self.put("\\e"),
                '\u{85}' => self.put("\\N"),
                '\u{2028}' => self.put("\\L"),
                '\u{2029}' => self.put("\\P"),
                c if !is_printable(c) => {
                    let code = c as u32;
                    let escaped = match code {
                        ..=0xff => format!("\\x{code:02X}"),
                        0x100..=0xffff => format!("\\u{code:04X}"),
                        _ => format!("\\U{code:08X}"),
                    };
                    self.put(&escaped);
                }
                c => self.put(c.encode_utf8(&mut [0; 4])),
            }
            spaces = c == ' ';
        }
        self.put("\"");
    }

    fn literal(&mut self, text: &str, indent: usize) {
        self.put("|");
        if text.starts_with([' ', '\n']) {
            self.put("2");
        }
        let keeps = text == "\n" || text.ends_with("\n\n");
        if keeps {
            self.put("+");
        } else if !text.ends_with('\n') {
            self.put("-");
        }
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            self.put("\n");
            if !line.is_empty() {
                self.put(&" ".repeat(indent));
                self.put(line);
            }
        }
        // An empty line at the end is part of the text, whatever follows.
        if self.column == 0 {
            self.out.push('\n');
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Single,
    Double,
    Literal,
}

impl Style {
    fn of(text: &str, key: bool) -> Self {
        let facts = Facts::of(text);
        if text.contains('\n') {
            return match facts.block_allowed && !key {
                true => Self::Literal,
                false => Self::Double,
            };
        }
        if is_something_else(text) {
            return Self::Double;
        }
        if facts.plain_allowed {
            return Self::Plain;
        }
        match facts.single_allowed {
            true => Self::Single,
            false => Self::Double,
        }
    }
}

/// What `yaml_emitter_analyze_scalar` finds, for text in block context.
struct Facts {
    plain_allowed: bool,
    single_allowed: bool,
    block_allowed: bool,
}

impl Facts {
    fn of(text: &str) -> Self {
        let mut indicators = text.starts_with("---") || text.starts_with("...");
        let (mut special, mut break_space, mut space_break) = (false, false, false);
        let mut before = None;
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            let blank_follows = rest.peek().is_none_or(|next| matches!(next, ' ' | '\t'));
            indicators |= match (before, c) {
                (None, '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|') => true,
                (None, '>' | '\'' | '"' | '%' | '@' | '`') => true,
                (None, '?' | '-') | (_, ':') => blank_follows,
                (Some(' ' | '\t' | '\n' | '\r'), '#') => true,
                _ => false,
            };
            special |= !is_printable(c);
            break_space |= c == ' ' && before.is_some_and(is_break);
            space_break |= is_break(c) && before == Some(' ');
            before = Some(c);
        }
        let edge = |c: char| c == ' ' || is_break(c);
        let edges = text.starts_with(edge) || text.ends_with(edge);
        let breaks = text.contains(is_break);
        Self {
            plain_allowed: !(indicators
                || special
                || break_space
                || space_break
                || edges
                || breaks),
            single_allowed: !(special || break_space || space_break),
            block_allowed: !(special || space_break || text.ends_with(' ')),
        }
    }
}

fn is_break(c: char) -> bool {
    matches!(c, '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// What go-yaml writes as it is: nothing beyond 16 bits.
fn is_printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}')
        && c != '\u{feff}'
}

/// Text that would be read as another type without quotes (YAML 1.1).
fn is_something_else(text: &str) -> bool {
    const WORDS: [&str; 22] = [
        "", "~", "<<", "y", "Y", "n", "N", "null", "Null", "NULL", ".nan", ".NaN", ".NAN", ".inf",
        ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF",
    ];
    const SWITCHES: [&str; 18] = [
        "yes", "Yes", "YES", "no", "No", "NO", "true", "True", "TRUE", "false", "False", "FALSE",
        "on", "On", "ON", "off", "Off", "OFF",
    ];
    if WORDS.contains(&text) || SWITCHES.contains(&text) {
        return true;
    }
    match text.as_bytes().first() {
        Some(b'.') => text.parse::<f64>().is_ok(),
        Some(b'+' | b'-' | b'0'..=b'9') => is_number(text) || is_time(text) || is_base_60(text),
        _ => false,
    }
}

fn is_number(text: &str) -> bool {
    let plain = text.replace('_', "");
    let unsigned = plain.strip_prefix(['+', '-']).unwrap_or(&plain);
    let in_base = |prefixes: [&str; 2], base: u32| {
        let digits = prefixes
            .iter()
            .find_map(|prefix| unsigned.strip_prefix(prefix));
        digits.is_some_and(|digits| u64::from_str_radix(digits, base).is_ok())
    };
    if in_base(["0x", "0X"], 16) || in_base(["0o", "0O"], 8) || in_base(["0b", "0B"], 2) {
        return true;
    }
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let exponent_is_one =
        exponent.is_none_or(|text| digits(text.strip_prefix(['+', '-']).unwrap_or(text)));
    let mantissa_is_one = match mantissa.split_once('.') {
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
        None => digits(mantissa),
    };
    mantissa_is_one && exponent_is_one
}

/// `2006-1-2`, with a time or without.
fn is_time(text: &str) -> bool {
    let Some((year, rest)) = text.split_once('-') else {
        return false;
    };
    if year.len() != 4 || !year.bytes().all(|c| c.is_ascii_digit()) {
        return false;
    }
    let date_end = rest.find(['T', 't', ' ']).unwrap_or(rest.len());
    let (date, time) = rest.split_at(date_end);
    let number = |text: &str, least: u32, most: u32| {
        let fits = text
            .parse::<u32>()
            .is_ok_and(|number| (least..=most).contains(&number));
        matches!(text.len(), 1 | 2) && fits
    };
    let Some((month, day)) = date.split_once('-') else {
        return false;
    };
    if !number(month, 1, 12) || !number(day, 1, 31) {
        return false;
    }
    let Some(clock) = time.get(1..) else {
        return true;
    };
    let zone_at = clock.find(['Z', '+', '-']).unwrap_or(clock.len());
    let (clock, zone) = clock.split_at(zone_at);
    let offset = zone
        .strip_prefix(['+', '-'])
        .and_then(|zone| zone.split_once(':'));
    let zoned = zone == "Z"
        || offset.is_some_and(|(hours, minutes)| number(hours, 0, 24) && number(minutes, 0, 60));
    let zone_fits = if time.starts_with(' ') {
        zone.is_empty()
    } else {
        zoned
    };
    match clock.split(':').collect::<Vec<_>>()[..] {
        [hour, minute, second] => {
            let whole = second.split_once('.').map_or(second, |(whole, _)| whole);
            zone_fits && number(hour, 0, 23) && number(minute, 0, 59) && number(whole, 0, 59)
        }
        _ => false,
    }
}

/// `1:30`, which YAML 1.1 reads as 90.
fn is_base_60(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let mut parts = whole.split(':');
    let number = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_digit())
            && text.bytes().all(|c| c.is_ascii_digit() || c == b'_')
    };
    let sixtieth = |text: &str| {
        matches!(text.len(), 1 | 2) && text.parse::<u8>().is_ok_and(|number| number < 60)
    };
    let first = parts.next().is_some_and(number);
    let rest: Vec<&str> = parts.collect();
    first
        && !rest.is_empty()
        && rest.into_iter().all(sixtieth)
        && fraction.bytes().all(|c| c.is_ascii_digit() || c == b'_')
}

/// go-yaml's order of keys: what is no letter first, numbers by what they count.
fn key_order(left: &str, right: &str) -> Ordering {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let number = |text: &[char], from: usize, start: u64| {
        let digits = text[from..].iter().take_while(|c| c.is_ascii_digit());
        let digits: Vec<u64> = digits
            .filter_map(|c| c.to_digit(10))
            .map(u64::from)
            .collect();
        let value = digits.iter().fold(start, |value, digit| {
            value.wrapping_mul(10).wrapping_add(*digit)
        });
        (value, digits.len())
    };
    let differ = left
        .iter()
        .zip(&right)
        .position(|(left, right)| left != right);
    let Some(at) = differ else {
        return left.len().cmp(&right.len());
    };
    let (l, r) = (left[at], right[at]);
    match (l.is_alphabetic(), r.is_alphabetic()) {
        (true, true) => return l.cmp(&r),
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        (false, false) => {}
    }
    let digits_before = left[..at].iter().rev().take_while(|c| c.is_ascii_digit());
    let start = u64::from((l == '0' || r == '0') && digits_before.into_iter().any(|c| *c != '0'));
    number(&left, at, start)
        .cmp(&number(&right, at, start))
        .then(l.cmp(&r))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_quoted_as_go_yaml_quotes_them() {
        for (text, expected) in [
            ("a", "a"),
            ("", r#""""#),
            ("1", r#""1""#),
            ("1e3", r#""1e3""#),
            ("0x1F", r#""0x1F""#),
            ("1.2.3.4", "1.2.3.4"),
            ("10Gi", "10Gi"),
            ("12:30", r#""12:30""#),
            ("true", r#""true""#),
            ("On", r#""On""#),
            ("null", r#""null""#),
            ("2020-01-01", r#""2020-01-01""#),
            ("2020-01-01T00:00:00Z", r#""2020-01-01T00:00:00Z""#),
            ("f:data", "f:data"),
            (".", "."),
            ("a: b", "'a: b'"),
            ("it's: x", "'it''s: x'"),
            (r#"configmaps "x" not found"#, r#"configmaps "x" not found"#),
            (r#""q""#, r#"'"q"'"#),
            (" lead", "' lead'"),
            ("#c", "'#c'"),
            ("a #b", "'a #b'"),
            ("{a}", "'{a}'"),
            ("*", "'*'"),
            ("- a", "'- a'"),
            ("-a", "-a"),
            ("a\tb", r#""a\tb""#),
            ("\u{e9}", "\u{e9}"),
            ("a\nb", "|-\n    a\n    b"),
            ("a\nb\n", "|\n    a\n    b"),
            (" a\nb\n", "|2\n     a\n    b"),
            ("a \nb", r#""a \nb""#),
        ] {
            let shown = to_string(&json!({"k": {"t": text}}));
            assert_eq!(shown, format!("k:\n  t: {expected}\n"));
        }
    }

    #[test]
    fn lists_stand_as_deep_as_their_key() {
        let value = json!({
            "b": [1, {"x": 1, "a": ["y"]}, [2, 3]], "a10": {}, "a9": [], "y": null, "1": true, "A": 1.5,
        });
        let expected = "\"1\": true\nA: 1.5\na9: []\na10: {}\nb:\n- 1\n- a:\n  - \"y\"\n  x: 1\n- - 2\n  - 3\n\"y\": null\n";
        assert_eq!(to_string(&value), expected);
    }

    #[test]
    fn long_texts_are_folded() {
        let long = "word ".repeat(20) + "end";
        let shown = to_string(&json!({"d": long, "e": format!("x: {long}")}));
        for line in shown.lines() {
            assert!(line.len() <= WIDTH + 5, "{line}");
        }
        let read: Value = serde_saphyr::from_str(&shown).expect("YAML");
        assert_eq!(read["d"], long);
        assert_eq!(read["e"], format!("x: {long}"));
    }
}
