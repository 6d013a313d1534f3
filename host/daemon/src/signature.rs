//! Who vouches for a plugin: signatures as `minisign` makes them, `NAME.wasm.minisig` beside `NAME.wasm`.

use std::fs;
use std::path::Path;

use minisign_verify::{PublicKey, Signature};

/// Whose signatures count, and whether a plugin needs one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signers {
    /// Each with the text that it was given as.
    keys: Vec<(String, PublicKey)>,
    required: bool,
}

/// What a signature says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Signed {
    /// A key that is trusted signed these bytes.
    By {
        /// The key, as the configuration gives it.
        key: String,
        /// The signer's own words, which the signature covers.
        comment: String,
    },
    /// There is none.
    Not,
    /// There is one, and no key to check it with.
    Unchecked,
}

impl Signers {
    /// Reads keys, each as `minisign` prints it (`RW…`) or as the path of a public key's file.
    ///
    /// # Errors
    /// What is wrong with which key, or that signatures are required and there is no key.
    pub(crate) fn new(keys: &[String], required: bool) -> Result<Self, String> {
        if required && keys.is_empty() {
            return Err(String::from(
                "[policy] require-signature needs keys: signing-keys = [\"RW…\"], the second line of what `minisign -G` wrote to minisign.pub",
            ));
        }
        let keys = keys.iter().map(|text| {
            let key = match PublicKey::from_base64(text) {
                Ok(key) => key,
                Err(_) if Path::new(text).is_file() => {
                    let file = fs::read_to_string(text).map_err(|error| format!("cannot read the key {text}: {error}"))?;
                    PublicKey::decode(&file).map_err(|error| format!("{text} holds no public key: {error}"))?
                }
                Err(error) => {
                    return Err(format!(
                        "[policy] signing-keys: {text:?} is neither a key ({error}) nor a file that is there; a key begins with RW"
                    ));
                }
            };
            Ok((text.clone(), key))
        });
        Ok(Signers { keys: keys.collect::<Result<_, String>>()?, required })
    }

    /// Checks the signature of a file. One that is wrong is worse than none: it is refused whether one is required or not.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub(crate) fn check(&self, wasm: &[u8], signature: Option<&str>) -> Result<Signed, String> {
        let Some(text) = signature else {
            return match self.required {
                true => Err(String::from(
                    "nobody has signed it, and [policy] require-signature is set; sign it with `minisign -Sm NAME.wasm` and put NAME.wasm.minisig beside it",
                )),
                false => Ok(Signed::Not),
            };
        };
        if self.keys.is_empty() {
            return Ok(Signed::Unchecked);
        }
        let signature =
            Signature::decode(text).map_err(|error| format!("the .minisig beside it is no signature: {error}"))?;
        let mut known = false;
        for (name, key) in &self.keys {
            match key.verify(wasm, &signature, false) {
                Ok(()) => {
                    return Ok(Signed::By { key: name.clone(), comment: signature.trusted_comment().to_owned() });
                }
                Err(minisign_verify::Error::UnexpectedKeyId) => {}
                Err(_) => known = true,
            }
        }
        Err(match known {
            true => String::from(
                "its signature does not fit: the file was changed after it was signed, or the signature is that of another file",
            ),
            false => String::from(
                "it is signed with a key that is not trusted here; if you trust the signer, add the key to [policy] signing-keys",
            ),
        })
    }
}

impl std::fmt::Display for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Signed::By { key, comment } => write!(f, "signed with {key}: {comment}"),
            Signed::Not => f.write_str("not signed"),
            Signed::Unchecked => f.write_str("signed, and not checked: [policy] signing-keys names no key"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_none_is_named_and_required_signatures_need_one() {
        assert!(Signers::new(&[], true).unwrap_err().contains("signing-keys"));
        assert!(Signers::new(&["RWnonsense".to_owned()], false).unwrap_err().contains("RWnonsense"));
        let none = Signers::new(&[], false).unwrap();
        assert_eq!(none.check(b"x", None), Ok(Signed::Not));
        assert_eq!(none.check(b"x", Some("anything")), Ok(Signed::Unchecked));
    }
}
