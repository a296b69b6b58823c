//! Forms that browsers send.

use percent_encoding::percent_decode_str;

/// Names and values, in their order; a name may stand several times.
#[derive(Debug, Default)]
pub(crate) struct Form(Vec<(String, String)>);

impl Form {
    /// Reads `application/x-www-form-urlencoded`, as bodies and queries have it.
    pub(crate) fn parse(text: &str) -> Self {
        let decoded =
            |part: &str| percent_decode_str(&part.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decoded(name), decoded(value)))
                .collect(),
        )
    }

    /// The value of a field without the white space around it; empty when it is not there.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(own, _)| own == name).map_or("", |(_, value)| value.trim())
    }

    /// All fields whose names begin so, with the rest of their names.
    pub(crate) fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.trim())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_as_browsers_write_it() {
        let form = Form::parse("a=1+2&b=%C3%BC%26&c&percent.one=70&percent.two=30&bad=%FF%zz");
        assert_eq!((form.get("a"), form.get("b"), form.get("c"), form.get("d")), ("1 2", "ü&", "", ""));
        assert_eq!(form.with_prefix("percent.").collect::<Vec<_>>(), [("one", "70"), ("two", "30")]);
        assert_eq!(form.get("bad"), "\u{fffd}%zz");
    }
}
