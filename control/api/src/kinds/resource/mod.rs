//! resource.k8s.io/v1: dynamic resource allocation (KEP-4381).

pub mod device_class;
mod devices;
mod requests;
pub mod resource_claim;
pub mod resource_claim_template;
pub mod resource_slice;

use crate::field::{Bad, Errors, Path};

/// Every item, unless there are too many, which hides everything else.
fn validate_items<T>(
    items: &[T],
    limit: usize,
    path: &Path<'_>,
    errors: &mut Errors,
    mut item: impl FnMut(&T, &Path<'_>, &mut Errors),
) -> bool {
    if items.len() > limit {
        errors.too_many(path, items.len(), limit);
        return false;
    }
    for (i, one) in items.iter().enumerate() {
        item(one, &path.index(i), errors);
    }
    true
}

/// The same, of items that differ in their key.
fn validate_set<T, K: PartialEq + Clone>(
    items: &[T],
    limit: usize,
    key: impl Fn(&T) -> K,
    path: &Path<'_>,
    errors: &mut Errors,
    item: impl FnMut(&T, &Path<'_>, &mut Errors),
) where
    Bad: From<K>,
{
    if !validate_items(items, limit, path, errors, item) {
        return;
    }
    let keys: Vec<K> = items.iter().map(key).collect();
    for (i, key) in keys.iter().enumerate() {
        if keys[..i].contains(key) {
            errors.duplicate(&path.index(i), key.clone());
        }
    }
}

const NO_LIMIT: usize = usize::MAX;
