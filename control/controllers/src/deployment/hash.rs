//! The value of the label `pod-template-hash`, which also names the ReplicaSet.

use k8s_openapi::api::core::v1::PodTemplateSpec;

/// Without vowels and look-alikes, so that no hash spells a word. Upstream's `rand.SafeEncodeString`.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// FNV-1a (32 bits) of the template, and of the collision count if there is one, encoded in upstream's alphabet.
/// Upstream hashes a Go dump of the struct; ours hashes its JSON, so the values differ, their form does not.
pub(crate) fn template_hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    // A template of plain data always serializes; an empty text would still be a valid hash.
    let text = serde_json::to_vec(template).unwrap_or_default();
    let mut hash = fnv1a(0x811c_9dc5, &text);
    if let Some(count) = collision_count {
        hash = fnv1a(hash, &count.to_le_bytes());
    }
    hash.to_string()
        .bytes()
        .map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]))
        .collect()
}

fn fnv1a(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_on_template_and_collisions_only() {
        let template = PodTemplateSpec::default();
        let hash = template_hash(&template, None);
        assert_eq!(hash, template_hash(&template.clone(), None));
        assert_ne!(hash, template_hash(&template, Some(1)));
        assert!(hash.bytes().all(|byte| ALPHABET.contains(&byte)), "{hash}");
        assert!((1..=10).contains(&hash.len()));
        assert_eq!(fnv1a(0x811c_9dc5, b"a"), 0xe40c_292c);
    }
}
