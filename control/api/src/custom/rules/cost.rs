//! What a rule may cost at most (cel-go's estimator with the API server's factors): one unit is about one comparison.

/// Most that one rule may cost, over all places of an object where it is run.
pub const LIMIT: u64 = 10_000_000;
/// Most that all rules of a schema may cost.
pub const TOTAL_LIMIT: u64 = 100_000_000;

pub const LIST: u64 = 10;
pub const MAP: u64 = 30;
pub const OBJECT: u64 = 40;

/// Walking over a string or list: a tenth a byte or item.
pub fn traverse(size: u64) -> u64 {
    size.div_ceil(10)
}

/// Running a regular expression: a quarter for each of its bytes and traversed step.
pub fn regex(input: u64, pattern: u64) -> u64 {
    traverse(input.saturating_add(1)).saturating_mul(pattern.div_ceil(4))
}

/// How far something is over its budget, in upstream's words.
pub fn exceeds(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}
