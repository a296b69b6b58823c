use super::memory::{BINS, Memory};

/// How many signals describe a minute.
pub(super) const SIGNALS: usize = 45;
/// All levels of a signal are below this.
pub(super) const LEVELS: usize = 48;

/// What a minute looks like when it begins without a call so far: a level per signal.
pub(super) type Signals = [u8; SIGNALS];

/// The signals of a revision at one time, for minute after minute from its last call on.
#[derive(Debug)]
pub(super) struct Situation<'a> {
    memory: &'a Memory,
    /// How many idle times were so long or shorter.
    shorter: [u16; BINS + 1],
    /// Minutes with a call in so many words of the past.
    called: [u16; 9],
    /// The signals that do not change with the age.
    base: Signals,
}

impl<'a> Situation<'a> {
    pub(super) fn new(memory: &'a Memory) -> Self {
        let mut shorter = [0; BINS + 1];
        let mut sum = 0;
        for (at, &count) in memory.idle().iter().enumerate() {
            sum += u16::from(count);
            shorter[at + 1] = sum;
        }
        let mut called = [0; 9];
        for at in 0..8 {
            #[allow(clippy::cast_possible_truncation, reason = "at most 64")]
            (called[at + 1] = called[at] + memory.recent()[at].count_ones() as u16);
        }
        let mut base = [0; SIGNALS];
        let gaps = memory.gaps();
        base[8] = halves(memory.calls() as usize).min(20);
        base[11] = quarters(memory.usual().into());
        base[12] = halves(memory.usual_count().into());
        base[13] = share(memory.usual_count().into(), memory.total().into());
        base[16] = quarters(gaps[0].into()).min(40);
        base[17] = quarters(gaps[1].into()).min(40);
        base[18] = quarters(gaps[2].into()).min(40);
        base[22] = quarters(memory.longest().into()).min(40);
        base[25] = spread(gaps);
        Self { memory, shorter, called, base }
    }

    fn idle(&self, from: usize, to: usize) -> usize {
        let (from, to) = (from.max(1), to.min(BINS));
        if from > to { 0 } else { usize::from(self.shorter[to] - self.shorter[from - 1]) }
    }

    /// Minutes with a call in the `span` minutes before the one of age `age`.
    fn within(&self, age: usize, span: usize) -> usize {
        let bits = span.saturating_sub(age - 1).min(8 * 64);
        let (words, rest) = (bits / 64, bits % 64);
        let part = if rest == 0 { 0 } else { self.memory.recent()[words] << (64 - rest) };
        usize::from(self.called[words]) + part.count_ones() as usize
    }

    fn was(&self, age: usize, ago: usize) -> usize {
        ago.checked_sub(age).map_or(0, |ago| self.memory.was(ago))
    }

    /// Of the minutes 1 to `times` steps before the one of age `age`: how many had a call.
    fn hits(&self, age: usize, step: usize, times: usize) -> usize {
        let first = age.div_ceil(step.max(1)).max(1);
        (first..=times).map(|time| self.memory.was(time * step - age)).sum()
    }

    /// The signals of the minute of age `age`, from 1.
    #[allow(clippy::cast_possible_truncation, reason = "levels are below 48")]
    pub(super) fn at(&self, age: usize) -> Signals {
        let memory = self.memory;
        let mut signals = self.base;
        let total = usize::from(memory.total());
        let as_long = total - usize::from(self.shorter[(age - 1).min(BINS)]);
        let exact = self.idle(age, age);
        let before = self.idle(age - 1, age - 1);
        let near = exact + before + self.idle(age + 1, age + 1);
        let from = (4 * age / 5).max(1);
        let wide = self.idle(from, 5 * age / 4);
        let known = memory.known() + age;
        let calls = memory.calls() as usize;
        let usual = usize::from(memory.usual());
        let longest = usize::from(memory.longest());
        signals[0] = quarters(age).min(40);
        signals[1] = halves(exact);
        signals[2] = halves(near);
        signals[3] = halves(wide);
        signals[4] = halves(as_long);
        signals[5] = share(exact, as_long);
        signals[6] = share(near, as_long + before);
        signals[7] = share(wide, as_long + self.idle(from, age - 1));
        signals[9] = halves(known).min(20);
        signals[10] = halves(calls * 1_440 / known);
        signals[14] = if usual == 0 {
            0
        } else if age > usual && age.is_multiple_of(usual) {
            10
        } else {
            distance(age, usual)
        };
        signals[15] = if usual == 0 { 0 } else { self.hits(age, usual, 4) as u8 };
        for at in 0..3 {
            signals[19 + at] = distance(age, memory.gaps()[at].into());
        }
        signals[23] = (16 * age).checked_div(longest).map_or(0, |times| halves(times).min(18));
        signals[24] = halves(8 * age * calls / known).min(20);
        for (at, span) in [5, 15, 30, 60, 120, 240, 480].into_iter().enumerate() {
            signals[26 + at] = halves(self.within(age, span));
        }
        const STEPS: [(usize, usize); 11] = [
            (5, 6),
            (10, 6),
            (15, 6),
            (20, 6),
            (30, 8),
            (60, 4),
            (60, 24),
            (120, 6),
            (180, 6),
            (240, 5),
            (360, 3),
        ];
        for (at, (step, times)) in STEPS.into_iter().enumerate() {
            signals[33 + at] = self.hits(age, step, times) as u8;
        }
        signals[44] = (1..=4)
            .map(|hour| self.was(age, 60 * hour - 1) | self.was(age, 60 * hour + 1))
            .sum::<usize>() as u8;
        signals
    }
}

/// 0, 1, 2, 3, 4-5, 6-7, 8-11, 12-15, …: two levels an octave.
#[allow(clippy::cast_possible_truncation, reason = "below 130")]
fn halves(value: usize) -> u8 {
    if value < 2 {
        return value as u8;
    }
    let octave = value.ilog2() as usize;
    (2 * octave + (value >> (octave - 1) & 1)) as u8
}

/// 0 to 7, 8-9, 10-11, …: four levels an octave.
#[allow(clippy::cast_possible_truncation, reason = "below 260")]
fn quarters(value: usize) -> u8 {
    if value < 4 {
        return value as u8;
    }
    let octave = value.ilog2() as usize;
    (4 * octave - 4 + (value >> (octave - 2) & 3)) as u8
}

/// None is 0; the whole is 14; a level less for each half octave less.
fn share(part: usize, whole: usize) -> u8 {
    whole.checked_div(part).map_or(0, |times| 15 - halves(times).clamp(1, 14))
}

/// How far `age` is beyond `gap`: 0 for no gap; 5 when it is met.
fn distance(age: usize, gap: usize) -> u8 {
    if gap == 0 {
        return 0;
    }
    match age.cast_signed() - gap.cast_signed() {
        ..=-30 => 1,
        -29..=-6 => 2,
        -5..=-2 => 3,
        -1 => 4,
        0 => 5,
        1 => 6,
        2..=5 => 7,
        6..=29 => 8,
        30.. => 9,
    }
}

/// How much the last idle times differ: the mean distance of their logarithms from their mean.
fn spread(gaps: &[u16; 8]) -> u8 {
    let mut logs = [0_i32; 8];
    let mut count = 0;
    for (log, &gap) in logs.iter_mut().zip(gaps).take_while(|(_, gap)| **gap > 0) {
        let (gap, octave) = (i32::from(gap), gap.ilog2());
        *log = 32 * octave.cast_signed() + ((gap << 5) >> octave) - 32;
        count += 1;
    }
    if count < 2 {
        return 0;
    }
    let logs = &logs[..count as usize];
    let mean = logs.iter().sum::<i32>() / count;
    let distance = logs.iter().map(|log| (log - mean).abs()).sum::<i32>() / count;
    1 + halves(distance.unsigned_abs() as usize).min(16)
}
