//! Tree to value: complete evaluation, in which an error is remembered and the operator it meets has its zero value.

use super::{
    EvaluationError, Value,
    cast::{Errors, boolean, integer, text},
    functions,
    parse::{Node, Operator},
};

pub(super) type Attributes<'a> = &'a dyn Fn(&str) -> Option<Value>;

/// The value of a node; `None`: an attribute that the event does not have, for whose subexpression the operator around
/// it has a value.
pub(super) fn evaluate(node: &Node, attributes: Attributes<'_>, errors: &mut Errors) -> Option<Value> {
    match node {
        Node::Literal(value) => Some(value.clone()),
        Node::Attribute(name) => {
            let value = attributes(name);
            if value.is_none() {
                errors.push(EvaluationError::MissingAttribute(name.clone()));
            }
            value
        }
        Node::Exists(name) => Some(Value::Boolean(attributes(name).is_some())),
        Node::Not(operand) => {
            let value = evaluate(operand, attributes, errors).and_then(|value| boolean(&value, errors));
            Some(Value::Boolean(value.is_some_and(|value| !value)))
        }
        Node::Negate(operand) => {
            let value = evaluate(operand, attributes, errors).and_then(|value| integer(&value, errors));
            Some(Value::Integer(value.map_or(0, |value| checked(value.checked_neg(), errors))))
        }
        Node::Chain(first, rest) => {
            let mut left = evaluate(first, attributes, errors);
            for (operator, right) in rest {
                left = Some(apply(*operator, left, right, attributes, errors));
            }
            left
        }
        Node::Like { value, pattern, negated } => {
            let matched = evaluate(value, attributes, errors)
                .is_some_and(|value| pattern.matches(&text(&value)) != *negated);
            Some(Value::Boolean(matched))
        }
        Node::In { value, set, negated } => Some(Value::Boolean(match evaluate(value, attributes, errors) {
            Some(value) => is_in(&value, set, attributes, errors).is_some_and(|found| found != *negated),
            None => false,
        })),
        Node::Call { name, arguments } => {
            let Some(function) = functions::find(name, arguments.len()) else {
                let (name, arguments) = (name.clone(), arguments.len());
                errors.push(EvaluationError::MissingFunction { name, arguments });
                return Some(Value::Boolean(false));
            };
            let values: Option<Vec<Value>> =
                arguments.iter().map(|argument| evaluate(argument, attributes, errors)).collect();
            Some(values.map_or_else(|| function.zero(), |values| function.call(&values, errors)))
        }
    }
}

/// One operator of a chain, whose left operand is what came of those before.
fn apply(
    operator: Operator,
    left: Option<Value>,
    right: &Node,
    attributes: Attributes<'_>,
    errors: &mut Errors,
) -> Value {
    if let Operator::And | Operator::Or = operator {
        let decides = operator == Operator::Or;
        // Where the left operand is missing or unfit the value is false, and the right one is not asked.
        return Value::Boolean(match left.and_then(|left| boolean(&left, errors)) {
            None => false,
            Some(left) if left == decides => decides,
            Some(_) => {
                evaluate(right, attributes, errors).and_then(|right| boolean(&right, errors)).unwrap_or(false)
            }
        });
    }
    match (left, evaluate(right, attributes, errors)) {
        (Some(left), Some(right)) => binary(operator, &left, &right, errors),
        _ => zero(operator),
    }
}

/// Whether a value is in a set; `None`: an element that was asked is missing.
fn is_in(value: &Value, set: &[Node], attributes: Attributes<'_>, errors: &mut Errors) -> Option<bool> {
    for element in set {
        let element = evaluate(element, attributes, errors)?;
        // The type of the left operand is what elements are made.
        let same = match value {
            Value::String(value) => *value == text(&element),
            Value::Integer(value) => integer(&element, errors) == Some(*value),
            Value::Boolean(value) => boolean(&element, errors) == Some(*value),
        };
        if same {
            return Some(true);
        }
    }
    Some(false)
}

/// The value of an operator one of whose operands is missing.
fn zero(operator: Operator) -> Value {
    match operator {
        Operator::Multiply | Operator::Divide | Operator::Remainder | Operator::Add | Operator::Subtract => {
            Value::Integer(0)
        }
        _ => Value::Boolean(false),
    }
}

fn binary(operator: Operator, left: &Value, right: &Value, errors: &mut Errors) -> Value {
    match operator {
        Operator::Equal | Operator::NotEqual => {
            // The right operand says which of the three operators of this sign is meant.
            let equal = match right {
                Value::String(right) => Some(text(left) == *right),
                Value::Integer(right) => integer(left, errors).map(|left| left == *right),
                Value::Boolean(right) => boolean(left, errors).map(|left| left == *right),
            };
            Value::Boolean(equal.is_some_and(|equal| equal == (operator == Operator::Equal)))
        }
        Operator::Xor => {
            let (left, right) = (boolean(left, errors), boolean(right, errors));
            Value::Boolean(left.zip(right).is_some_and(|(left, right)| left != right))
        }
        _ => {
            let (left, right) = (integer(left, errors), integer(right, errors));
            let Some((left, right)) = left.zip(right) else { return zero(operator) };
            match operator {
                Operator::Less => Value::Boolean(left < right),
                Operator::LessOrEqual => Value::Boolean(left <= right),
                Operator::Greater => Value::Boolean(left > right),
                Operator::GreaterOrEqual => Value::Boolean(left >= right),
                Operator::Add => Value::Integer(checked(left.checked_add(right), errors)),
                Operator::Subtract => Value::Integer(checked(left.checked_sub(right), errors)),
                Operator::Multiply => Value::Integer(checked(left.checked_mul(right), errors)),
                _ if right == 0 => {
                    errors.push(EvaluationError::Math("division by zero".to_owned()));
                    Value::Integer(0)
                }
                Operator::Divide => Value::Integer(checked(left.checked_div(right), errors)),
                // The smallest integer divided by -1 leaves nothing.
                _ => Value::Integer(left.wrapping_rem(right)),
            }
        }
    }
}

/// A result, or 0 and an error where 32 bits do not hold it.
fn checked(result: Option<i32>, errors: &mut Errors) -> i32 {
    result.unwrap_or_else(|| {
        errors.push(EvaluationError::Math("the result is not within 32 bits".to_owned()));
        0
    })
}
