//! Which functions there are, and what they take and give: cel-go's standard library, its extensions and Kubernetes' own
//! (apiserver `cel/environment`, `cel/library`).

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use super::types::Type;

/// One a line: name, parameters, result. A method's name begins with a dot, and its target is the first parameter; `A`
/// stands for any one type.
const SIGNATURES: &str = "
size(string) int
size(bytes) int
size(list(A)) int
size(map(A, B)) int
.size(string) int
.size(bytes) int
.size(list(A)) int
.size(map(A, B)) int
int(int) int
int(uint) int
int(double) int
int(string) int
int(timestamp) int
int(duration) int
uint(uint) uint
uint(int) uint
uint(double) uint
uint(string) uint
double(double) double
double(int) double
double(uint) double
double(string) double
string(string) string
string(bool) string
string(int) string
string(uint) string
string(double) string
string(bytes) string
string(timestamp) string
string(duration) string
string(net.IP) string
string(net.CIDR) string
bytes(bytes) bytes
bytes(string) bytes
bool(bool) bool
bool(string) bool
duration(duration) duration
duration(string) duration
duration(int) duration
timestamp(timestamp) timestamp
timestamp(string) timestamp
timestamp(int) timestamp
dyn(A) dyn
type(A) type
matches(string, string) bool
.matches(string, string) bool
.contains(string, string) bool
.startsWith(string, string) bool
.endsWith(string, string) bool
.getFullYear(timestamp) int
.getFullYear(timestamp, string) int
.getMonth(timestamp) int
.getMonth(timestamp, string) int
.getDate(timestamp) int
.getDate(timestamp, string) int
.getDayOfMonth(timestamp) int
.getDayOfMonth(timestamp, string) int
.getDayOfWeek(timestamp) int
.getDayOfWeek(timestamp, string) int
.getDayOfYear(timestamp) int
.getDayOfYear(timestamp, string) int
.getHours(timestamp) int
.getHours(timestamp, string) int
.getHours(duration) int
.getMinutes(timestamp) int
.getMinutes(timestamp, string) int
.getMinutes(duration) int
.getSeconds(timestamp) int
.getSeconds(timestamp, string) int
.getSeconds(duration) int
.getMilliseconds(timestamp) int
.getMilliseconds(timestamp, string) int
.getMilliseconds(duration) int
.charAt(string, int) string
.indexOf(string, string) int
.indexOf(string, string, int) int
.indexOf(list(A), A) int
.lastIndexOf(string, string) int
.lastIndexOf(string, string, int) int
.lastIndexOf(list(A), A) int
.join(list(string)) string
.join(list(string), string) string
.lowerAscii(string) string
.upperAscii(string) string
.trim(string) string
.replace(string, string, string) string
.replace(string, string, string, int) string
.split(string, string) list(string)
.split(string, string, int) list(string)
.substring(string, int) string
.substring(string, int, int) string
.format(string, list(dyn)) string
.reverse(string) string
strings.quote(string) string
.find(string, string) string
.findAll(string, string) list(string)
.findAll(string, string, int) list(string)
.isSorted(list(A)) bool
.sum(list(A)) A
.min(list(A)) A
.max(list(A)) A
.slice(list(A), int, int) list(A)
.flatten(list(list(A))) list(A)
.flatten(list(dyn), int) list(dyn)
.distinct(list(A)) list(A)
.sort(list(A)) list(A)
.reverse(list(A)) list(A)
.first(list(A)) optional_type(A)
.last(list(A)) optional_type(A)
lists.range(int) list(int)
sets.contains(list(A), list(A)) bool
sets.equivalent(list(A), list(A)) bool
sets.intersects(list(A), list(A)) bool
optional.none() optional_type(A)
optional.of(A) optional_type(A)
optional.ofNonZeroValue(A) optional_type(A)
optional.unwrap(list(optional_type(A))) list(A)
.unwrapOpt(list(optional_type(A))) list(A)
.hasValue(optional_type(A)) bool
.value(optional_type(A)) A
.or(optional_type(A), optional_type(A)) optional_type(A)
.orValue(optional_type(A), A) A
base64.encode(bytes) string
base64.decode(string) bytes
math.greatest(...) dyn
math.least(...) dyn
math.abs(...) dyn
math.ceil(double) double
math.floor(double) double
math.round(double) double
math.trunc(double) double
math.sign(...) dyn
math.sqrt(...) double
math.isNaN(double) bool
math.isInf(double) bool
math.isFinite(double) bool
math.bitAnd(...) dyn
math.bitOr(...) dyn
math.bitXor(...) dyn
math.bitNot(...) dyn
math.bitShiftLeft(...) dyn
math.bitShiftRight(...) dyn
url(string) kubernetes.URL
isURL(string) bool
.getScheme(kubernetes.URL) string
.getHost(kubernetes.URL) string
.getHostname(kubernetes.URL) string
.getPort(kubernetes.URL) string
.getEscapedPath(kubernetes.URL) string
.getQuery(kubernetes.URL) map(string, list(string))
ip(string) net.IP
isIP(string) bool
ip.isCanonical(string) bool
.family(net.IP) int
.isUnspecified(net.IP) bool
.isLoopback(net.IP) bool
.isLinkLocalMulticast(net.IP) bool
.isLinkLocalUnicast(net.IP) bool
.isGlobalUnicast(net.IP) bool
cidr(string) net.CIDR
isCIDR(string) bool
.containsIP(net.CIDR, string) bool
.containsIP(net.CIDR, net.IP) bool
.containsCIDR(net.CIDR, string) bool
.containsCIDR(net.CIDR, net.CIDR) bool
.ip(net.CIDR) net.IP
.masked(net.CIDR) net.CIDR
.prefixLength(net.CIDR) int
quantity(string) kubernetes.Quantity
isQuantity(string) bool
.sign(kubernetes.Quantity) int
.isInteger(kubernetes.Quantity) bool
.asInteger(kubernetes.Quantity) int
.asApproximateFloat(kubernetes.Quantity) double
.add(kubernetes.Quantity, kubernetes.Quantity) kubernetes.Quantity
.add(kubernetes.Quantity, int) kubernetes.Quantity
.sub(kubernetes.Quantity, kubernetes.Quantity) kubernetes.Quantity
.sub(kubernetes.Quantity, int) kubernetes.Quantity
.isGreaterThan(kubernetes.Quantity, kubernetes.Quantity) bool
.isLessThan(kubernetes.Quantity, kubernetes.Quantity) bool
.compareTo(kubernetes.Quantity, kubernetes.Quantity) int
semver(string) kubernetes.Semver
semver(string, bool) kubernetes.Semver
isSemver(string) bool
isSemver(string, bool) bool
.major(kubernetes.Semver) int
.minor(kubernetes.Semver) int
.patch(kubernetes.Semver) int
.isGreaterThan(kubernetes.Semver, kubernetes.Semver) bool
.isLessThan(kubernetes.Semver, kubernetes.Semver) bool
.compareTo(kubernetes.Semver, kubernetes.Semver) int
format.named(string) optional_type(kubernetes.NamedFormat)
format.dns1123Label() kubernetes.NamedFormat
format.dns1123Subdomain() kubernetes.NamedFormat
format.dns1035Label() kubernetes.NamedFormat
format.qualifiedName() kubernetes.NamedFormat
format.dns1123LabelPrefix() kubernetes.NamedFormat
format.dns1123SubdomainPrefix() kubernetes.NamedFormat
format.dns1035LabelPrefix() kubernetes.NamedFormat
format.labelValue() kubernetes.NamedFormat
format.uri() kubernetes.NamedFormat
format.uuid() kubernetes.NamedFormat
format.byte() kubernetes.NamedFormat
format.date() kubernetes.NamedFormat
format.datetime() kubernetes.NamedFormat
.validate(kubernetes.NamedFormat, string) optional_type(list(string))
jsonpatch.escapeKey(string) string
.path(kubernetes.authorization.Authorizer, string) kubernetes.authorization.PathCheck
.serviceAccount(kubernetes.authorization.Authorizer, string, string) kubernetes.authorization.Authorizer
.group(kubernetes.authorization.Authorizer, string) kubernetes.authorization.GroupCheck
.resource(kubernetes.authorization.GroupCheck, string) kubernetes.authorization.ResourceCheck
.subresource(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.namespace(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.name(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.fieldSelector(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.labelSelector(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.check(kubernetes.authorization.PathCheck, string) kubernetes.authorization.Decision
.check(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.Decision
.allowed(kubernetes.authorization.Decision) bool
.reason(kubernetes.authorization.Decision) string
.errored(kubernetes.authorization.Decision) bool
.error(kubernetes.authorization.Decision) string
";

enum Parameter {
    A,
    B,
    Type(Type),
    List(Box<Parameter>),
    Map(Box<Parameter>, Box<Parameter>),
    Optional(Box<Parameter>),
}

struct Signature {
    /// `None`: any.
    parameters: Option<Vec<Parameter>>,
    result: Parameter,
}

static TABLE: LazyLock<HashMap<&'static str, Vec<Signature>>> = LazyLock::new(|| {
    let mut table: HashMap<_, Vec<Signature>> = HashMap::new();
    for line in SIGNATURES.lines() {
        if let Some((name, signature)) = parsed(line) {
            table.entry(name).or_default().push(signature);
        }
    }
    table
});

fn parsed(line: &'static str) -> Option<(&'static str, Signature)> {
    let (name, rest) = line.split_once('(')?;
    let mut depth = 1;
    let close = rest.find(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        depth == 0
    })?;
    let parameters = match &rest[..close] {
        "..." => None,
        "" => Some(Vec::new()),
        some => Some(split(some).into_iter().map(parameter).collect()),
    };
    let result = parameter(rest[close + 1..].trim());
    Some((name, Signature { parameters, result }))
}

/// At commas that stand in no parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

fn parameter(text: &str) -> Parameter {
    if let Some((of, inner)) = text.strip_suffix(')').and_then(|t| t.split_once('(')) {
        let mut inner = split(inner).into_iter().map(parameter).map(Box::new);
        if let (Some(first), second) = (inner.next(), inner.next()) {
            return match (of, second) {
                ("list", _) => Parameter::List(first),
                ("map", Some(values)) => Parameter::Map(first, values),
                _ => Parameter::Optional(first),
            };
        }
    }
    Parameter::Type(match text {
        "A" => return Parameter::A,
        "B" => return Parameter::B,
        "dyn" => Type::Dyn,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::TEXT,
        "bytes" => Type::Bytes(u64::MAX),
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        name => Type::named(name),
    })
}

/// What `A` and `B` stand for so far.
type Bound = [Option<Type>; 2];

impl Parameter {
    fn accepts(&self, ty: &Type, bound: &mut Bound) -> bool {
        match (self, ty) {
            (Self::A, ty) => bind(&mut bound[0], ty),
            (Self::B, ty) => bind(&mut bound[1], ty),
            (Self::Type(wanted), ty) => wanted.matches(ty),
            (_, Type::Dyn) => true,
            (Self::List(items), Type::List(ty, _)) => items.accepts(ty, bound),
            (Self::Map(keys, values), Type::Map(k, v, _)) => {
                keys.accepts(k, bound) && values.accepts(v, bound)
            }
            (Self::Optional(of), Type::Optional(ty)) => of.accepts(ty, bound),
            _ => false,
        }
    }

    fn filled(&self, bound: &Bound) -> Type {
        match self {
            Self::A => bound[0].clone().unwrap_or(Type::Dyn),
            Self::B => bound[1].clone().unwrap_or(Type::Dyn),
            Self::Type(ty) => ty.clone(),
            Self::List(items) => Type::list(items.filled(bound)),
            Self::Map(keys, values) => Type::Map(
                Arc::new(keys.filled(bound)),
                Arc::new(values.filled(bound)),
                u64::MAX,
            ),
            Self::Optional(of) => Type::Optional(Arc::new(of.filled(bound))),
        }
    }
}

fn bind(bound: &mut Option<Type>, ty: &Type) -> bool {
    match bound {
        Some(known) if !known.matches(ty) => false,
        Some(known) => {
            *known = known.clone().join(ty.clone());
            true
        }
        None => {
            *bound = Some(ty.clone());
            true
        }
    }
}

/// Whether a function of this name exists: `size`, `.size` (a method), `sets.contains`.
pub fn exists(name: &str) -> bool {
    TABLE.contains_key(name)
}

/// What a function gives for these. `None`: it does not take them.
pub fn result(name: &str, arguments: &[Type]) -> Option<Type> {
    let mut found: Option<Type> = None;
    for signature in TABLE.get(name)? {
        let mut bound = Bound::default();
        let fits = match &signature.parameters {
            None => true,
            Some(parameters) => {
                let mut pairs = parameters.iter().zip(arguments);
                parameters.len() == arguments.len()
                    && pairs.all(|(parameter, ty)| parameter.accepts(ty, &mut bound))
            }
        };
        if fits {
            let result = signature.result.filled(&bound);
            found = Some(match found {
                Some(other) if other != result => Type::Dyn,
                _ => result,
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read() {
        let lines = SIGNATURES.lines().filter(|line| !line.is_empty());
        assert!(lines.clone().all(|line| parsed(line).is_some()));
        assert_eq!(
            TABLE.values().map(Vec::len).sum::<usize>(),
            lines.count(),
            "a line twice"
        );
        let query = result(".getQuery", &[Type::named("kubernetes.URL")]);
        assert_eq!(query, Some(Type::map(Type::list(Type::TEXT))));
    }

    #[test]
    fn types_of_arguments_decide() {
        assert_eq!(result("size", &[Type::list(Type::Int)]), Some(Type::Int));
        assert_eq!(result("size", &[Type::Int]), None);
        assert_eq!(
            result(".max", &[Type::list(Type::Double)]),
            Some(Type::Double)
        );
        assert_eq!(
            result(".indexOf", &[Type::list(Type::Double), Type::TEXT]),
            None
        );
        assert_eq!(
            result(".add", &[Type::Dyn, Type::Int])
                .map(|t| t.to_string())
                .as_deref(),
            Some("kubernetes.Quantity")
        );
    }
}
