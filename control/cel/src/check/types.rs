//! The types of expressions, with how large their values may get.

use std::{collections::BTreeMap, fmt, sync::Arc};

/// The type of an expression, as cel-go shows it. Two types are equal whatever their sizes.
#[derive(Clone, Debug)]
pub enum Type {
    /// Known at evaluation only.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    /// Most bytes.
    String(u64),
    Bytes(u64),
    Timestamp,
    Duration,
    /// Items, and most of them.
    List(Arc<Type>, u64),
    /// Keys, values, and most of them.
    Map(Arc<Type>, Arc<Type>, u64),
    /// An object whose fields are known.
    Object(Arc<BTreeMap<String, Type>>),
    Optional(Arc<Type>),
    /// A constructed object (`Object.spec`), a value of a library, or a type itself.
    Named(String),
}

impl Type {
    /// A string of any length.
    pub const TEXT: Self = Self::String(u64::MAX);

    /// A list of any length.
    pub fn list(items: Self) -> Self {
        Self::List(Arc::new(items), u64::MAX)
    }

    /// A map of any length with strings as keys.
    pub fn map(values: Self) -> Self {
        Self::Map(Arc::new(Self::TEXT), Arc::new(values), u64::MAX)
    }

    pub fn named(name: &str) -> Self {
        Self::Named(name.to_owned())
    }

    /// How many elements or bytes a value may have; 1 for what has none.
    pub fn size(&self) -> u64 {
        match self {
            Self::String(max) | Self::Bytes(max) | Self::List(_, max) | Self::Map(_, _, max) => {
                *max
            }
            Self::Dyn => u64::MAX,
            _ => 1,
        }
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    /// Whether a value of one may stand where one of the other is expected.
    pub fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dyn, _) | (_, Self::Dyn) => true,
            (Self::List(a, _), Self::List(b, _)) | (Self::Optional(a), Self::Optional(b)) => {
                a.matches(b)
            }
            (Self::Map(k, a, _), Self::Map(l, b, _)) => k.matches(l) && a.matches(b),
            (Self::Named(a), Self::Named(b)) => a == b,
            // A message may be null.
            (a, Self::Null) | (Self::Null, a) => a.may_be_null(),
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }

    fn may_be_null(&self) -> bool {
        matches!(
            self,
            Self::Null | Self::Object(_) | Self::Named(_) | Self::Timestamp | Self::Duration
        )
    }

    /// What either of two branches gives.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::String(a), Self::String(b)) => Self::String(a.max(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Self::Bytes(a.max(b)),
            (Self::List(a, m), Self::List(b, n)) => {
                Self::List(Arc::new((*a).clone().join((*b).clone())), m.max(n))
            }
            (Self::Map(k, a, m), Self::Map(l, b, n)) => Self::Map(
                Arc::new((*k).clone().join((*l).clone())),
                Arc::new((*a).clone().join((*b).clone())),
                m.max(n),
            ),
            (Self::Dyn, _) | (_, Self::Dyn) => Self::Dyn,
            (Self::Null, a) | (a, Self::Null) if a.may_be_null() => a,
            (a, b) if a.matches(&b) => a,
            _ => Self::Dyn,
        }
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a, _), Self::List(b, _)) | (Self::Optional(a), Self::Optional(b)) => a == b,
            (Self::Map(k, a, _), Self::Map(l, b, _)) => k == l && a == b,
            (Self::Object(a), Self::Object(b)) => a == b,
            (Self::Named(a), Self::Named(b)) => a == b,
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }
}

impl Eq for Type {}

impl Type {
    /// The name that cel-go gives the type itself (`types.Type.String`), which some errors say instead of the short one.
    pub fn runtime_name(&self) -> String {
        match self {
            Self::Null => "null_type".to_owned(),
            Self::Timestamp => "google.protobuf.Timestamp".to_owned(),
            Self::Duration => "google.protobuf.Duration".to_owned(),
            Self::List(items, _) => format!("list({})", items.runtime_name()),
            Self::Map(keys, values, _) => {
                format!("map({}, {})", keys.runtime_name(), values.runtime_name())
            }
            Self::Optional(of) => format!("optional_type({})", of.runtime_name()),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String(_) => f.write_str("string"),
            Self::Bytes(_) => f.write_str("bytes"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::List(items, _) => write!(f, "list({items})"),
            Self::Map(keys, values, _) => write!(f, "map({keys}, {values})"),
            Self::Object(_) => f.write_str("object"),
            Self::Optional(of) => write!(f, "optional_type({of})"),
            Self::Named(name) => f.write_str(name),
        }
    }
}
