//! What bytes are, and whether the compiler should see them at all.

use sas_core::{Error, ErrorKind, Result};
use wasmparser::{Parser, Payload};

use crate::config::{CompileLimits, WasmConfig};

/// What a function is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A core module of WASI preview 1 that speaks CGI.
    Cgi,
    /// A component that exports `wasi:http/incoming-handler` of WASI 0.2.
    Http02,
    /// A component that exports `wasi:http/handler` of WASI 0.3.
    Http03,
}

impl Kind {
    /// The name as notes and metrics show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cgi => "cgi",
            Self::Http02 => "wasi-http-0.2",
            Self::Http03 => "wasi-http-0.3",
        }
    }
}

pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidSpec, "prepare", message)
}

/// The binary form: text is assembled, everything else passes as it is.
pub(crate) fn to_binary(name: &str, code: &[u8], limits: &CompileLimits) -> Result<Option<Vec<u8>>> {
    if code.len() > limits.code_bytes {
        return Err(invalid(format!(
            "source: {name} has {} bytes: at most {} are accepted (WasmConfig.compile.code_bytes)",
            code.len(),
            limits.code_bytes
        )));
    }
    if code.starts_with(b"\0asm") {
        return Ok(None);
    }
    let start = code.iter().copied().find(|byte| !byte.is_ascii_whitespace());
    if !matches!(start, Some(b'(' | b';')) {
        let begins: Vec<String> = code.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        return Err(invalid(format!(
            "source: {name} begins with [{}], which is neither WebAssembly (00 61 73 6d) nor its text form: \
             build the function for wasm32-wasip1 or as a wasi:http component",
            begins.join(" ")
        )));
    }
    let text = std::str::from_utf8(code)
        .map_err(|error| invalid(format!("source: {name} looks like text but is not UTF-8: {error}")))?;
    let binary = wat::parse_str(text).map_err(|error| invalid(format!("source: {name}: {error}")))?;
    Ok(Some(binary))
}

/// Finds out what a binary is, and refuses what would cost the compiler out of proportion.
pub(crate) fn inspect(binary: &[u8], config: &WasmConfig) -> Result<Kind> {
    let limits = &config.compile;
    let broken = |error: wasmparser::BinaryReaderError| {
        invalid(format!(
            "source: the code is damaged or cut short at byte {}: {}",
            error.offset(),
            error.message()
        ))
    };
    let mut component = false;
    let mut depth = 0_u32;
    let mut nested = 0_u32;
    let mut exports = Vec::new();
    for payload in Parser::new(0).parse_all(binary) {
        let payload = payload.map_err(broken)?;
        let counted = match &payload {
            Payload::Version { encoding, .. } if depth == 0 => {
                component = *encoding == wasmparser::Encoding::Component;
                None
            }
            Payload::TypeSection(section) => Some(("types", section.count())),
            Payload::ImportSection(section) => Some(("imports", section.count())),
            Payload::FunctionSection(section) => Some(("functions", section.count())),
            Payload::TableSection(section) => Some(("tables", section.count())),
            Payload::GlobalSection(section) => Some(("globals", section.count())),
            Payload::ExportSection(section) => Some(("exports", section.count())),
            Payload::ElementSection(section) => Some(("element segments", section.count())),
            Payload::DataSection(section) => Some(("data segments", section.count())),
            Payload::ComponentTypeSection(section) => Some(("component types", section.count())),
            Payload::ComponentImportSection(section) => Some(("component imports", section.count())),
            Payload::ComponentInstanceSection(section) => Some(("component instances", section.count())),
            Payload::ComponentAliasSection(section) => Some(("aliases", section.count())),
            Payload::ComponentCanonicalSection(section) => Some(("canonical functions", section.count())),
            Payload::InstanceSection(section) => Some(("instances", section.count())),
            Payload::ComponentExportSection(section) => {
                if depth == 0 {
                    for export in section.clone() {
                        exports.push(export.map_err(broken)?.name.name.to_owned());
                    }
                }
                Some(("component exports", section.count()))
            }
            Payload::CodeSectionEntry(body) => {
                let size = body.range().len();
                if size as u64 > u64::from(limits.function_bytes) {
                    return Err(invalid(format!(
                        "source: a function at byte {} has {size} bytes: at most {} are accepted \
                         (WasmConfig.compile.function_bytes)",
                        body.range().start,
                        limits.function_bytes
                    )));
                }
                None
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                depth += 1;
                nested += 1;
                Some((
                    "nested modules and components",
                    nested.saturating_mul(limits.entities / limits.nested.max(1)),
                ))
            }
            Payload::End(_) => {
                depth = depth.saturating_sub(1);
                None
            }
            _ => None,
        };
        if let Some((what, count)) = counted
            && count > limits.entities
        {
            let (count, most) = match what {
                "nested modules and components" => (nested, limits.nested),
                _ => (count, limits.entities),
            };
            return Err(invalid(format!(
                "source: {count} {what}: at most {most} are accepted (WasmConfig.compile)"
            )));
        }
    }
    if !component {
        return Ok(Kind::Cgi);
    }
    kind_of_component(&exports, config)
}

fn kind_of_component(exports: &[String], config: &WasmConfig) -> Result<Kind> {
    let has = |prefix: &str| exports.iter().any(|name| name.starts_with(prefix));
    if has("wasi:http/incoming-handler@0.2.") {
        return Ok(Kind::Http02);
    }
    if has("wasi:http/handler@0.3.") {
        if !cfg!(feature = "wasi-0-3") || !config.wasi_0_3 {
            return Err(invalid(
                "source: the component is of WASI 0.3, which this platform does not accept \
                 (WasmConfig.wasi_0_3 and the crate's feature wasi-0-3)",
            ));
        }
        return Ok(Kind::Http03);
    }
    let found = match exports {
        [] => "nothing".to_owned(),
        names => names.iter().take(20).cloned().collect::<Vec<_>>().join(", "),
    };
    Err(invalid(format!(
        "source: the component exports {found}, but a function exports wasi:http/incoming-handler@0.2 or \
         wasi:http/handler@0.3: build it for the world wasi:http/proxy"
    )))
}
