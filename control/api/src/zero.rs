//! An absent field reads as its zero value, which is how upstream's rules are written.

pub trait Text {
    /// The text, or `""`.
    fn text(&self) -> &str;
}

impl Text for Option<String> {
    fn text(&self) -> &str {
        self.as_deref().unwrap_or("")
    }
}

pub trait List<T> {
    /// The items, or none.
    fn items(&self) -> &[T];
}

impl<T> List<T> for Option<Vec<T>> {
    fn items(&self) -> &[T] {
        self.as_deref().unwrap_or_default()
    }
}

pub trait Flag {
    /// Whether it is there and true.
    fn is_true(&self) -> bool;
}

impl Flag for Option<bool> {
    fn is_true(&self) -> bool {
        *self == Some(true)
    }
}

/// Sets a text that is absent or empty.
pub fn fill(field: &mut Option<String>, default: &str) {
    if field.text().is_empty() {
        *field = Some(default.to_owned());
    }
}

/// Sets what is absent.
pub fn set<T>(field: &mut Option<T>, default: T) {
    if field.is_none() {
        *field = Some(default);
    }
}
