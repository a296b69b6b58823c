/// Idle times longer than this share one count.
const BINS: usize = 240;
/// Minutes of the past that are remembered one by one.
const RECENT: usize = 256;

/// What is remembered of one revision. Times are minutes since the epoch.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    first: i64,
    last: i64,
    /// Minutes with a call.
    calls: u32,
    /// Bit `i`: called in the minute `last - i`.
    recent: [u64; RECENT / 64],
    /// Idle times by length in minutes, halved together when one is full, so that old habits fade.
    idle: [u8; BINS],
    beyond: u8,
    /// The sum of them all.
    total: u16,
    /// The commonest idle time.
    usual: u8,
    /// The last idle times, newest first; 0: none yet.
    gaps: [u16; 3],
}

/// Which two signals a table is about, and how many levels each has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) name: &'static str,
    pub(super) left: usize,
    pub(super) right: usize,
}

impl Pair {
    const fn new(name: &'static str, left: usize, right: usize) -> Self {
        Self { name, left, right }
    }
}

const AGES: usize = 16;
const SHARES: usize = 9;
const COUNTS: usize = 8;

pub(super) const PAIRS: [Pair; 20] = [
    Pair::new("idle times of this length: share × how many were as long", SHARES, COUNTS),
    Pair::new("idle times of this length: share × age", SHARES, AGES),
    Pair::new("give or take a minute: share × how many", SHARES, COUNTS),
    Pair::new("give or take a minute: share × age", SHARES, AGES),
    Pair::new("give or take a fifth: share × how many", SHARES, COUNTS),
    Pair::new("give or take a fifth: share × age", SHARES, AGES),
    Pair::new("calls a day × age", 12, AGES),
    Pair::new("calls in the last hour × age", 8, AGES),
    Pair::new("calls in the last four hours × age", 10, AGES),
    Pair::new("5, 10, … 30 minutes ago × age", 7, AGES),
    Pair::new("10, 20, … 60 minutes ago × age", 7, AGES),
    Pair::new("15, 30, … 90 minutes ago × age", 7, AGES),
    Pair::new("30, 60, … 240 minutes ago × age", 9, AGES),
    Pair::new("60, 120, 180, 240 minutes ago × around them", 5, 5),
    Pair::new("multiples of the usual idle time × age", 5, AGES),
    Pair::new("last idle time × age", AGES, AGES),
    Pair::new("the one before × age", AGES, AGES),
    Pair::new("minutes with a call × age", 12, AGES),
    Pair::new("known for × age", 10, AGES),
    Pair::new("share of the usual idle time × distance from it", SHARES, 7),
];

/// Cells of all tables together.
pub(super) const CELLS: usize = {
    let (mut sum, mut at) = (0, 0);
    while at < PAIRS.len() {
        sum += PAIRS[at].left * PAIRS[at].right;
        at += 1;
    }
    sum
};

/// Where each table begins.
pub(super) const STARTS: [usize; PAIRS.len()] = {
    let (mut starts, mut sum, mut at) = ([0; PAIRS.len()], 0, 0);
    while at < PAIRS.len() {
        starts[at] = sum;
        sum += PAIRS[at].left * PAIRS[at].right;
        at += 1;
    }
    starts
};

/// One cell of each table.
pub(super) type Cells = [u16; PAIRS.len()];

impl Memory {
    pub(super) fn new(minute: i64) -> Self {
        let mut recent = [0; RECENT / 64];
        recent[0] = 1;
        Self {
            first: minute,
            last: minute,
            calls: 1,
            recent,
            idle: [0; BINS],
            beyond: 0,
            total: 0,
            usual: 0,
            gaps: [0; 3],
        }
    }

    /// It was called in `minute`. A minute that is not later than the last one (a clock that went back) begins a new
    /// idle time and teaches nothing.
    pub(super) fn call(&mut self, minute: i64) {
        let Ok(gap @ 1..) = usize::try_from(minute.saturating_sub(self.last)) else {
            self.last = minute;
            self.first = self.first.min(minute);
            return;
        };
        self.last = minute;
        self.calls = self.calls.saturating_add(1);
        self.shift(gap);
        let short = u16::try_from(gap).unwrap_or(u16::MAX);
        self.gaps = [short, self.gaps[0], self.gaps[1]];
        self.total += 1;
        let count = match self.idle.get_mut(gap - 1) {
            Some(count) => count,
            None => &mut self.beyond,
        };
        *count += 1;
        let full = *count == u8::MAX;
        if gap <= BINS {
            let usual = self.usual_count();
            if self.idle[gap - 1] > usual {
                #[allow(clippy::cast_possible_truncation, reason = "at most 240")]
                (self.usual = gap as u8);
            }
        }
        if full {
            self.halve();
        }
    }

    fn usual_count(&self) -> u8 {
        if self.usual == 0 { 0 } else { self.idle[usize::from(self.usual) - 1] }
    }

    fn shift(&mut self, gap: usize) {
        let (words, bits) = (gap / 64, gap % 64);
        let old = self.recent;
        for (at, word) in self.recent.iter_mut().enumerate() {
            let low = at.checked_sub(words).map_or(0, |at| old[at] << bits);
            let carry = at.checked_sub(words + 1).filter(|_| bits > 0).map_or(0, |at| old[at] >> (64 - bits));
            *word = low | carry;
        }
        self.recent[0] |= 1;
    }

    fn halve(&mut self) {
        self.beyond /= 2;
        self.total = u16::from(self.beyond);
        for count in &mut self.idle {
            *count /= 2;
            self.total += u16::from(*count);
        }
    }

    /// Whether it was called `ago` minutes before the minute of age `age`.
    fn was(&self, age: usize, ago: usize) -> usize {
        let at = ago.wrapping_sub(age);
        if at < RECENT { (self.recent[at / 64] >> (at % 64) & 1) as usize } else { 0 }
    }

    fn hits<const N: usize>(&self, age: usize, step: usize) -> usize {
        (1..=N).map(|times| self.was(age, times * step)).sum()
    }

    /// Minutes with a call in the `span` minutes before the one of age `age`.
    fn within(&self, age: usize, span: usize) -> usize {
        let bits = span.saturating_sub(age).min(RECENT);
        let whole: u32 = self.recent[..bits / 64].iter().map(|word| word.count_ones()).sum();
        let rest = if bits.is_multiple_of(64) {
            0
        } else {
            (self.recent[bits / 64] << (64 - bits % 64)).count_ones()
        };
        (whole + rest) as usize
    }

    /// The minute of the last call.
    pub(super) fn last(&self) -> i64 {
        self.last
    }

    /// How many idle times lasted `age` minutes.
    pub(super) fn exactly(&self, age: usize) -> u32 {
        self.idle.get(age - 1).map_or(0, |&count| u32::from(count))
    }

    /// How many idle times lasted `age` minutes or longer.
    pub(super) fn as_long(&self, age: usize) -> u32 {
        let shorter: u32 = self.idle[..(age - 1).min(BINS)].iter().map(|&count| u32::from(count)).sum();
        u32::from(self.total) - shorter
    }

    fn idle_in(&self, from: usize, to: usize) -> u32 {
        let (from, to) = (from.max(1), to.min(BINS));
        if from > to {
            return 0;
        }
        self.idle[from - 1..to].iter().map(|&count| u32::from(count)).sum()
    }

    /// The cells for the minute of age `age` (from 1): what was remembered when that minute begins without a call so far.
    /// `as_long` is [`Memory::as_long`] of `age`.
    #[allow(clippy::cast_possible_truncation, reason = "levels are below 16, tables below 65,536 cells")]
    pub(super) fn cells(&self, age: usize, as_long: u32) -> Cells {
        let age_level = length_level(age);
        let many = count_level(as_long);
        let exact = share_level(self.exactly(age), as_long);
        let before = self.idle_in(age.max(2) - 1, age.max(2) - 1) * u32::from(age > 1);
        let near = share_level(self.idle_in(age.max(2) - 1, age + 1), as_long + before);
        let from = (4 * age / 5).max(1);
        let around = self.idle_in(from, 5 * age / 4);
        let wide = share_level(around, as_long + self.idle_in(from, age - 1));
        let known = (self.last - self.first) as usize + age;
        let per_day = u64::from(self.calls) * 1_440 / (known as u64).max(1);
        let hourly = self.hits::<4>(age, 60);
        let nearly: usize =
            (1..=4).map(|hour| (self.was(age, 60 * hour - 1) | self.was(age, 60 * hour + 1)).min(1)).sum();
        let usual = usize::from(self.usual);
        let multiples = if usual == 0 { 0 } else { self.hits::<4>(age, usual) };
        let gap_level =
            |gap: u16| if gap == 0 { 0 } else { length_level(usize::from(gap)).clamp(1, AGES - 1) };
        let distance = match (usual, age.cmp(&usual)) {
            (0, _) => 0,
            (_, std::cmp::Ordering::Equal) => 3,
            (_, std::cmp::Ordering::Less) => {
                if age + 1 == usual {
                    2
                } else {
                    1
                }
            }
            _ if age == usual + 1 => 4,
            _ if age.is_multiple_of(usual) => 5,
            _ => 6,
        };
        let levels = [
            (exact, many),
            (exact, age_level),
            (near, many),
            (near, age_level),
            (wide, many),
            (wide, age_level),
            (log_level(per_day as usize, 11), age_level),
            (log_level(self.within(age, 60), 7), age_level),
            (log_level(self.within(age, 240), 9), age_level),
            (self.hits::<6>(age, 5), age_level),
            (self.hits::<6>(age, 10), age_level),
            (self.hits::<6>(age, 15), age_level),
            (self.hits::<8>(age, 30), age_level),
            (hourly, nearly),
            (multiples, age_level),
            (gap_level(self.gaps[0]), age_level),
            (gap_level(self.gaps[1]), age_level),
            (log_level(self.calls as usize, 11), age_level),
            (log_level(known / 8, 9), age_level),
            (share_level(u32::from(self.usual_count()), u32::from(self.total)), distance),
        ];
        let mut cells = [0; PAIRS.len()];
        for (at, (left, right)) in levels.into_iter().enumerate() {
            debug_assert!(
                left < PAIRS[at].left && right < PAIRS[at].right,
                "{}: {left} {right}",
                PAIRS[at].name
            );
            cells[at] = (STARTS[at] + left * PAIRS[at].right + right) as u16;
        }
        cells
    }
}

/// 1, 2, 3, 4, 5, 6-7, 8-10, 11-14, 15-20, 21-29, 30-44, 45-64, 65-99, 100-159, 160-239, 240 and more.
fn length_level(age: usize) -> usize {
    const FROM: [usize; 15] = [2, 3, 4, 5, 6, 8, 11, 15, 21, 30, 45, 65, 100, 160, 240];
    FROM.partition_point(|&from| from <= age)
}

/// 0, 1, 2, 3-4, 5-8, 9-16, 17-64, more.
fn count_level(count: u32) -> usize {
    const FROM: [u32; 7] = [1, 2, 3, 5, 9, 17, 65];
    FROM.partition_point(|&from| from <= count)
}

/// None, then by halves: under 1/64, 1/32, … under 1/2, 1/2 and more.
fn share_level(part: u32, whole: u32) -> usize {
    if part == 0 {
        return 0;
    }
    8 - (whole / part).max(1).ilog2().min(7) as usize
}

/// 0, 1, 2-3, 4-7, 8-15…, `most` at most.
fn log_level(value: usize, most: usize) -> usize {
    value.checked_ilog2().map_or(0, |octave| 1 + octave as usize).min(most)
}
