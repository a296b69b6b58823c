//! Only packages that a key has signed are deployed: an admission hook that checks a detached Ed25519 signature.
//!
//! Whoever builds signs the package's digest, as the platform computes it, and puts the signature in an annotation:
//! `example.org/signature: <128 hexadecimal digits>`. The hook sees the digest of the copy that will run, so that nothing can be
//! changed between the check and the start.
//!
//! ```text
//! cargo run --example admission_signature
//! ```

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::fmt;

use ring::{
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use sas::{
    async_trait,
    control::{AdmissionHook, AdmissionRequest, PackageDir, Refusal},
    core::BlobStore as _,
    prelude::*,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const SIGNATURE: &str = "example.org/signature";
/// What is signed says what it is for: a signature of the same key for something else is none for a deploy.
const PURPOSE: &str = "deploy ";

/// Lets packages in that one of these keys has signed.
struct Signed {
    keys: Vec<Vec<u8>>,
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("keys", &self.keys.len()).finish()
    }
}

#[async_trait]
impl AdmissionHook for Signed {
    fn name(&self) -> &str {
        "signatures"
    }

    async fn review(&self, request: &AdmissionRequest<'_>) -> Result<(), Refusal> {
        let field = format!("metadata.annotations[{SIGNATURE}]");
        // A package has a digest; an image or a function of the host has none, and is not what was signed.
        let Some(digest) = request.package else {
            return Err(Refusal::new(
                "sas.dev/package",
                "",
                "only packages are deployed here, since only they are signed",
            ));
        };
        let Some(text) = request.annotations.get(SIGNATURE) else {
            return Err(Refusal::new(
                field,
                "",
                format!("missing: sign {digest} and put the signature here"),
            ));
        };
        let wrong = |problem: &str| Refusal::new(field.clone(), text.clone(), problem);
        let signature = unhex(text).ok_or_else(|| wrong("must be 128 hexadecimal digits"))?;
        let message = format!("{PURPOSE}{digest}");
        let good = |key: &Vec<u8>| {
            UnparsedPublicKey::new(&ED25519, key).verify(message.as_bytes(), &signature).is_ok()
        };
        if self.keys.iter().any(good) {
            return Ok(());
        }
        Err(wrong("is of no key that may sign, or of another package"))
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 128 || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a build does: the digest as the platform will find it, and the signature of that.
async fn sign(key: &Ed25519KeyPair, package: &std::path::Path) -> Outcome<String> {
    let scratch = tempfile::tempdir()?;
    let digest = PackageDir::new(scratch.path()).put(&Source::Path(package.to_owned())).await?.digest;
    Ok(hex(key.sign(format!("{PURPOSE}{digest}").as_bytes()).as_ref()))
}

fn manifest(package: &std::path::Path, signature: Option<&str>) -> String {
    let signature = signature.map_or_else(String::new, |text| format!("    {SIGNATURE}: \"{text}\"\n"));
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: app\n  annotations:\n    \
         sas.dev/package: {}\n    sas.dev/command: sh app.sh\n{signature}spec: {{template: {{spec: {{}}}}}}\n",
        package.display()
    )
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let pair = || -> Outcome<Ed25519KeyPair> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| "no randomness")?;
        Ed25519KeyPair::from_pkcs8(document.as_ref()).map_err(|error| error.to_string().into())
    };
    let (ours, theirs) = (pair()?, pair()?);
    let work = tempfile::tempdir()?;
    let package = work.path().join("app");
    std::fs::create_dir(&package)?;
    std::fs::write(package.join("app.sh"), "sleep 60\n")?;

    let runtime = ProcessRuntime::new(ProcessConfig::in_store(work.path().join("unpacked")))?;
    let platform = Platform::builder()
        .runtime(runtime)
        .admission(Signed { keys: vec![ours.public_key().as_ref().to_vec()] })
        .build()
        .await?;
    let good = sign(&ours, &package).await?;
    let foreign = sign(&theirs, &package).await?;
    for (what, signature) in [
        ("without a signature", None),
        ("signed by somebody else", Some(foreign.as_str())),
        ("with half of one", Some(&good[..64])),
    ] {
        let Err(error) = platform.apply(&manifest(&package, signature), None).await else {
            return Err(format!("{what}: it was taken").into());
        };
        println!("{what}: {}", error.message);
    }
    platform.apply(&manifest(&package, Some(&good)), None).await?;
    println!("signed: deployed");

    // One byte more is another package.
    std::fs::write(package.join("app.sh"), "sleep 60 \n")?;
    let Err(error) = platform.apply(&manifest(&package, Some(&good)), None).await else {
        return Err("a package that was changed was taken".into());
    };
    println!("changed since: {}", error.message);
    if platform.control().record("default", "app")?.revisions.len() != 1 {
        return Err("a package that was refused left a revision".into());
    }
    platform.shutdown(std::time::Duration::from_secs(5)).await;
    Ok(())
}
