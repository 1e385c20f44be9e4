//! What Go's `encoding/asn1` says of bytes that are no request for a certificate.

const SEQUENCE: u8 = 16;

/// Looks at the outermost element only. `None`: what is wrong is deeper.
pub(super) fn problem(der: &[u8]) -> Option<String> {
    let syntax = |what: &str| Some(format!("asn1: syntax error: {what}"));
    let structure = |what: &str| Some(format!("asn1: structure error: {what}"));
    let mut bytes = der.iter().copied();
    let Some(first) = bytes.next() else {
        return syntax("sequence truncated");
    };
    let (class, compound, tag) = (first >> 6, first & 0x20 != 0, first & 0x1f);
    if tag == 0x1f {
        // Tags of several bytes, which nothing here has.
        return None;
    }
    const TRUNCATED: &str = "truncated tag or length";
    let Some(given) = bytes.next() else {
        return syntax(TRUNCATED);
    };
    let mut length = usize::from(given & 0x7f);
    if given & 0x80 != 0 {
        let size = length;
        if size == 0 {
            return syntax("indefinite length found (not DER)");
        }
        length = 0;
        for _ in 0..size {
            let Some(byte) = bytes.next() else {
                return syntax(TRUNCATED);
            };
            if length >= 1 << 23 {
                return structure("length too large");
            }
            length = length << 8 | usize::from(byte);
            if length == 0 {
                return structure("superfluous leading zeros in length");
            }
        }
        if length < 0x80 {
            return structure("non-minimal length");
        }
    }
    let left = bytes.len();
    if (class, compound, tag) != (0, true, SEQUENCE) {
        let at = der.len() - left;
        return structure(&format!(
            "tags don't match ({SEQUENCE} vs {{class:{class} tag:{tag} length:{length} isCompound:{compound}}}) \
             {{optional:false explicit:false application:false private:false defaultValue:<nil> tag:<nil> stringType:0 \
             timeType:0 set:false omitEmpty:false}} certificateRequest @{at}"
        ));
    }
    if length > left {
        return syntax("data truncated");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(der: &[u8], expected: Option<&str>) {
        assert_eq!(problem(der).as_deref(), expected, "{der:?}");
    }

    #[test]
    fn says_what_go_says() {
        check(&[], Some("asn1: syntax error: sequence truncated"));
        check(&[0x30], Some("asn1: syntax error: truncated tag or length"));
        check(&[0x30, 1], Some("asn1: syntax error: data truncated"));
        check(
            &[0x30, 0x81, 1, 0],
            Some("asn1: structure error: non-minimal length"),
        );
        check(&[0x30, 1, 0], None);
        check(
            b"foo",
            Some(
                "asn1: structure error: tags don't match (16 vs {class:1 tag:6 length:111 isCompound:true}) \
                 {optional:false explicit:false application:false private:false defaultValue:<nil> tag:<nil> \
                 stringType:0 timeType:0 set:false omitEmpty:false} certificateRequest @2",
            ),
        );
    }
}
