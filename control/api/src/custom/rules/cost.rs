//! What rules may cost at most: one unit is about one comparison (`skep_cel::check`).

/// Most that one rule may cost, over all places of an object where it is run.
pub const LIMIT: u64 = 10_000_000;
/// Most that all rules of a schema may cost.
pub const TOTAL_LIMIT: u64 = 100_000_000;

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
