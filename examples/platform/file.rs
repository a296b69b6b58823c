//! The file of `--config`: read with all its mistakes at once, and put together with the command line.

use std::{collections::BTreeMap, path::Path};

use clap::Args as _;
use sas::control::{ChangeTime, ConfigField, ConfigOrigin};
use sas::core::SpecErrors;
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use crate::config::Config;

/// Bytes that a file may have: what is longer is another file.
const LONGEST: u64 = 1 << 20;

/// What `config` says, by the names of files, without what it says nothing of.
pub(crate) fn said(config: &Config) -> Map<String, Value> {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(config) else {
        panic!("paths of files are text, and those of the command line were looked at (`not_text`)")
    };
    fields.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty()));
    fields
}

/// The options of the command line that are no UTF-8, which a configuration can't show.
pub(crate) fn not_text(matches: &clap::ArgMatches) -> SpecErrors {
    let mut errors = SpecErrors::default();
    for (field, option) in known() {
        let given = matches.get_raw(option.get_id().as_str()).into_iter().flatten();
        for value in given.filter(|value| value.to_str().is_none()) {
            errors.push(
                &field,
                value.to_string_lossy(),
                "not UTF-8: give the file or directory another name",
            );
        }
    }
    errors
}

/// `above` where it says something, and `below` where it does not.
pub(crate) fn over(above: &Config, below: &Config) -> Config {
    let mut fields = said(below);
    fields.extend(said(above));
    serde_json::from_value(Value::Object(fields)).expect("each field was one of a configuration")
}

/// Reads a file in YAML, of which JSON is a part.
pub(crate) fn read(path: &Path) -> Result<Config, SpecErrors> {
    let fail = |problem: String| {
        let mut errors = SpecErrors::default();
        errors.push("config", path.display(), problem);
        errors
    };
    let size = std::fs::metadata(path).map_err(|error| fail(format!("can't be read: {error}")))?.len();
    if size > LONGEST {
        return Err(fail(format!("has {size} bytes, and a configuration at most {LONGEST}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| fail(format!("can't be read: {error}")))?;
    parse(&text)
}

/// What a text says, or all that is wrong with it.
fn parse(text: &str) -> Result<Config, SpecErrors> {
    let mut errors = SpecErrors::default();
    let mut options = serde_saphyr::Options::default();
    options.strict_booleans = true;
    options.with_snippet = false;
    // A file of comments alone says nothing.
    let read: Result<Option<BTreeMap<String, Spanned<Value>>>, _> =
        serde_saphyr::from_str_with_options(text, options);
    let fields = match read {
        Ok(fields) => fields.unwrap_or_default(),
        Err(error) => {
            let at = error.location().map_or(String::new(), |at| format!("line {}", at.line()));
            errors.push("config", at, format!("not YAML or JSON with a field in each line: {error}"));
            return Err(errors);
        }
    };
    let known = known();
    let mut whole = Map::new();
    for (name, Spanned { value, referenced, .. }) in fields {
        let line = referenced.line();
        if !known.contains_key(&name) {
            errors.push(
                &name,
                shown(&value),
                format!("line {line}: no such field; {}", remedy(&name, &known)),
            );
            continue;
        }
        let alone = Map::from_iter([(name.clone(), value.clone())]);
        match serde_json::from_value::<Config>(Value::Object(alone.clone())) {
            Ok(_) => whole.extend(alone),
            Err(error) => {
                let mut problem = format!("line {line}: {error}");
                // What was read wrongly stands in it.
                if let Some(text) = value.as_str() {
                    problem = problem.replace(text, &shown(&value));
                }
                errors.push(&name, shown(&value), problem);
            }
        }
    }
    errors.into_result()?;
    Ok(serde_json::from_value(Value::Object(whole)).expect("each field was read by itself"))
}

/// A value as a person writes it.
pub(crate) fn shown(value: &Value) -> String {
    match without_passwords(value.clone()) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// The fields by their names, with their options.
fn known() -> BTreeMap<String, clap::Arg> {
    let command = Config::augment_args(clap::Command::new("platform"));
    command.get_arguments().map(|argument| (camel(argument.get_id().as_str()), argument.clone())).collect()
}

/// The field that was meant, if that can be told.
fn remedy(name: &str, known: &BTreeMap<String, clap::Arg>) -> String {
    let plain = |name: &str| {
        let letters = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>();
        letters.to_ascii_lowercase().trim_end_matches('s').to_owned()
    };
    let asked = plain(name);
    let meant = known.iter().find(|(field, option)| {
        plain(field) == asked || option.get_long().is_some_and(|long| plain(long) == asked)
    });
    match meant {
        Some((field, _)) => format!("write `{field}`"),
        None => "`platform --help` lists all; fields have their names in camel case".to_owned(),
    }
}

fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(word.len().min(1));
        camel.push_str(&first.to_ascii_uppercase());
        camel.push_str(rest);
    }
    camel
}

/// When a change of a field holds. What is not listed is built into the platform when it starts.
pub(crate) fn changes(name: &str) -> ChangeTime {
    match name {
        "log" | "adminHosts" | "openMetrics" | "requireIfMatch" | "adminRate" | "adminBurst"
        | "packageRoots" | "allowedRegistries" | "defaultQuota" | "prices" => ChangeTime::Reload,
        _ => ChangeTime::Restart,
    }
}

/// All fields: what `flags` and the file say of each.
pub(crate) fn fields(flags: &Config, file: &Config) -> Vec<ConfigField> {
    let (flags, file) = (said(flags), said(file));
    let fields = known().into_iter().map(|(name, option)| {
        let flag = option.get_long().map_or(String::new(), |long| format!("--{long}"));
        let mut field = ConfigField::new(&name, flag, changes(&name));
        field.help = option.get_help().map(ToString::to_string).unwrap_or_default();
        let (value, origin) = match (flags.get(&name), file.get(&name)) {
            (Some(value), _) => (value.clone(), ConfigOrigin::Flag),
            (None, Some(value)) => (value.clone(), ConfigOrigin::File),
            (None, None) => (Value::Null, ConfigOrigin::Default),
        };
        field.value = without_passwords(value);
        field.origin = origin;
        field
    });
    fields.collect()
}

/// A URL's user and password are nobody's who reads a configuration.
fn without_passwords(value: Value) -> Value {
    match value {
        // A password may hold any character, `/` too: up to the last `@`.
        Value::String(text) => Value::String(match text.split_once("://") {
            Some((scheme, rest)) => without_login(scheme, rest),
            None => text,
        }),
        Value::Array(items) => Value::Array(items.into_iter().map(without_passwords).collect()),
        other => other,
    }
}

/// Parameters of URLs that are no secrets.
const SHOWN: [&str; 9] = [
    "application_name",
    "connect_timeout",
    "connections",
    "region",
    "schema",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
];

fn without_login(scheme: &str, rest: &str) -> String {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    // It may be the rest of a password that has a `?` in it.
    if query.contains('@') {
        return format!("{scheme}://***");
    }
    let mut shown = match place.rsplit_once('@') {
        Some((_, place)) => format!("{scheme}://***@{place}"),
        None => format!("{scheme}://{place}"),
    };
    for (at, parameter) in query.split('&').filter(|parameter| !parameter.is_empty()).enumerate() {
        shown.push(if at == 0 { '?' } else { '&' });
        match parameter.split_once('=') {
            Some((name, _)) if SHOWN.contains(&name) => shown.push_str(parameter),
            _ => shown.push_str("***"),
        }
    }
    shown
}
