//! Numbers, by `libm`: the same bits on every host.

use super::{Native, native};
use crate::{Error, access::described, cx::Cx, value::Value};

macro_rules! one {
    ($name:literal, $function:expr) => {
        native($name, 0, |cx, input, _| {
            let function: fn(f64) -> f64 = $function;
            number(cx, &input).map(|number| Value::Float(function(number)))
        })
    };
}

macro_rules! two {
    ($name:literal, $function:expr) => {
        native($name, 2, |cx, _, arguments| {
            let function: fn(f64, f64) -> f64 = $function;
            Ok(Value::Float(function(number(cx, &arguments[0])?, number(cx, &arguments[1])?)))
        })
    };
}

pub(crate) const NATIVES: &[Native] = &[
    one!("floor", libm::floor),
    one!("ceil", libm::ceil),
    one!("round", libm::round),
    one!("trunc", libm::trunc),
    one!("rint", libm::rint),
    one!("nearbyint", libm::rint),
    one!("sqrt", libm::sqrt),
    one!("cbrt", libm::cbrt),
    one!("fabs", f64::abs),
    one!("exp", libm::exp),
    one!("exp2", libm::exp2),
    one!("exp10", libm::exp10),
    one!("expm1", libm::expm1),
    one!("log", libm::log),
    one!("log2", libm::log2),
    one!("log10", libm::log10),
    one!("log1p", libm::log1p),
    one!("sin", libm::sin),
    one!("cos", libm::cos),
    one!("tan", libm::tan),
    one!("asin", libm::asin),
    one!("acos", libm::acos),
    one!("atan", libm::atan),
    one!("sinh", libm::sinh),
    one!("cosh", libm::cosh),
    one!("tanh", libm::tanh),
    one!("asinh", libm::asinh),
    one!("acosh", libm::acosh),
    one!("atanh", libm::atanh),
    one!("j0", libm::j0),
    one!("j1", libm::j1),
    one!("y0", libm::y0),
    one!("y1", libm::y1),
    one!("gamma", libm::lgamma),
    one!("lgamma", libm::lgamma),
    one!("tgamma", libm::tgamma),
    one!("logb", |x| match libm::frexp(x) {
        _ if x == 0.0 => f64::NEG_INFINITY,
        _ if x.is_infinite() => f64::INFINITY,
        (_, exponent) => f64::from(exponent) - 1.0,
    }),
    one!("significand", |x| {
        if x == 0.0 || !x.is_finite() {
            return x;
        }
        libm::frexp(x).0 * 2.0
    }),
    two!("pow", libm::pow),
    two!("atan2", libm::atan2),
    two!("fmin", libm::fmin),
    two!("fmax", libm::fmax),
    two!("fmod", libm::fmod),
    two!("hypot", libm::hypot),
    two!("copysign", libm::copysign),
    two!("drem", libm::remainder),
    two!("fdim", libm::fdim),
    two!("nextafter", libm::nextafter),
    two!("nexttoward", libm::nextafter),
    two!("ldexp", scaled),
    two!("scalb", scaled),
    two!("scalbln", scaled),
    native("fma", 3, |cx, _, a| {
        Ok(Value::Float(libm::fma(number(cx, &a[0])?, number(cx, &a[1])?, number(cx, &a[2])?)))
    }),
    native("frexp", 0, |cx, input, _| {
        let (fraction, exponent) = libm::frexp(number(cx, &input)?);
        cx.make.list(vec![Value::Float(fraction), Value::Float(exponent.into())])
    }),
    native("modf", 0, |cx, input, _| {
        let (fraction, whole) = libm::modf(number(cx, &input)?);
        cx.make.list(vec![Value::Float(fraction), Value::Float(whole)])
    }),
    native("lgamma_r", 0, |cx, input, _| {
        let (value, sign) = libm::lgamma_r(number(cx, &input)?);
        cx.make.list(vec![Value::Float(value), Value::Float(sign.into())])
    }),
    native("abs", 0, |cx, input, _| match &input {
        Value::Int(whole) => {
            Ok(whole.checked_abs().map_or(Value::Float(9_223_372_036_854_775_808.0), Value::Int))
        }
        Value::Float(number) => Ok(Value::Float(if *number < 0.0 { -number } else { *number })),
        other => Err(cx.raise(format!("{} has no absolute value", described(other)))),
    }),
    native("nan", 0, |_, _, _| Ok(Value::Float(f64::NAN))),
    native("infinite", 0, |_, _, _| Ok(Value::Float(f64::INFINITY))),
    native("isnan", 0, |cx, input, _| number(cx, &input).map(|number| number.is_nan().into())),
    native("isinfinite", 0, |cx, input, _| number(cx, &input).map(|number| number.is_infinite().into())),
    native("isnormal", 0, |cx, input, _| number(cx, &input).map(|number| number.is_normal().into())),
];

fn number(cx: &Cx, value: &Value) -> Result<f64, Error> {
    value.as_f64().ok_or_else(|| cx.raise(format!("{} number required", described(value))))
}

fn scaled(number: f64, exponent: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "beyond it, all is infinite or zero")]
    libm::ldexp(number, exponent.clamp(-10_000.0, 10_000.0) as i32)
}
