//! Guest of the scenarios of data: `?op=NAME&…` does one of them and answers with numbers, times in nanoseconds of its own clock.
//!
//! Every operation checks what it read: a wrong byte fails the request.

mod query;

use std::io::{Read as _, Write as _};
use std::time::Instant;

use hob_bench_work::entries::{self, Spread};
use hob_bench_work::training::Trainer;
use hob_bench_work::words;
use hob_sdk::objects::{self, Mapped};
use hob_sdk::{Body, Error, Request, Response, StatusCode, kv};

use query::Query;

#[hob_sdk::function]
fn handle(req: Request) -> Result<Response, Error> {
    let query = Query::of(&req)?;
    let answer = match query.text("op")? {
        "get" => get(&query),
        "set" => set(&query),
        "put" => put(&query),
        "first" => first(&query),
        "take" => take(&query),
        "spread" => Ok(spread(query, req.into_body())),
        "scan" => scan(&query),
        "train" => train(&query),
        op => Err(Error::msg(format!("there is no operation '{op}'"))),
    };
    // Whoever measures wants to read what went wrong, which would be in the log.
    Ok(answer.unwrap_or_else(|error| Response::from(format!("{error}\n")).with_status(StatusCode::INTERNAL_SERVER_ERROR)))
}

/// Entries in an order; the time of each of many batches of `batch` gets.
fn get(query: &Query) -> Result<Response, Error> {
    let (count, batch, entries) = (query.number("count")?, query.number("batch")?, query.number("entries")?);
    let spread = Spread::parse(query.text("spread")?).ok_or_else(|| Error::msg("there is no such spread"))?;
    let picks = spread.picks(u32::try_from(entries)?, count, query.number("seed")? as u64);
    let bucket = kv::open(query.text("bucket")?)?;
    times(picks.chunks(batch), |picks| {
        for pick in picks {
            let found = bucket.get(entries::key(*pick))?;
            if found.as_deref() != Some(&entries::value(*pick)[..]) {
                return Err(Error::msg(format!("entry {pick} is not what was written")));
            }
        }
        Ok(())
    })
}

/// Entries from `from` up; the time of each of many batches of `batch` sets.
fn set(query: &Query) -> Result<Response, Error> {
    let (count, batch, from) = (query.number("count")?, query.number("batch")?, query.number("from")?);
    let numbers: Vec<u32> = (from..from + count).map(u32::try_from).collect::<Result<_, _>>()?;
    let bucket = kv::open(query.text("bucket")?)?;
    times(numbers.chunks(batch), |numbers| {
        for number in numbers {
            bucket.set(entries::key(*number), entries::value(*number))?;
        }
        Ok(())
    })
}

fn times<'a>(
    batches: impl Iterator<Item = &'a [u32]>,
    mut run: impl FnMut(&[u32]) -> Result<(), Error>,
) -> Result<Response, Error> {
    let mut times = String::new();
    for batch in batches {
        let began = Instant::now();
        run(batch)?;
        times.push_str(&format!("{} ", began.elapsed().as_nanos()));
    }
    Ok(times.into())
}

/// An object of `len` bytes; the time of putting it, when it was made already.
fn put(query: &Query) -> Result<Response, Error> {
    let bytes = words::bytes(query.number("seed")? as u64, query.number("len")?);
    let bucket = objects::open(query.text("bucket")?)?;
    let began = Instant::now();
    bucket.put(query.text("key")?, &bytes)?;
    Ok(format!("{}", began.elapsed().as_nanos()).into())
}

/// The time until the first byte of an object was seen, and that byte.
fn first(query: &Query) -> Result<Response, Error> {
    let began = Instant::now();
    let object = view(query)?;
    let first = *object.first().ok_or_else(|| Error::msg("the object is empty"))?;
    Ok(format!("{} {first}", began.elapsed().as_nanos()).into())
}

/// An object; the time until its first byte was seen, the time until all were, their sum.
fn take(query: &Query) -> Result<Response, Error> {
    let began = Instant::now();
    let object = view(query)?;
    let first = std::hint::black_box(object.first().copied());
    let opened = began.elapsed();
    let sum = words::sum(&object);
    first.ok_or_else(|| Error::msg("the object is empty"))?;
    Ok(format!("{} {} {sum}", opened.as_nanos(), began.elapsed().as_nanos()).into())
}

/// An object that many readers have at once. Says how long it took to have it, waits for something in the request's body, adds `count`
/// words, answers their sum and the time of that, and stays until the body ends.
fn spread(query: Query, mut body: Body) -> Response {
    Response::stream(move |out| {
        let began = Instant::now();
        let object = view(&query)?;
        writeln!(out, "{}", began.elapsed().as_nanos())?;
        out.flush()?;
        let mut piece = [0; 64];
        if body.read(&mut piece)? == 0 {
            return Err(Error::msg("the body ended before anybody said go"));
        }
        let began = Instant::now();
        let sum = words::sum_spread(&object, query.number("count")?, query.number("reader")?);
        writeln!(out, "{sum} {}", began.elapsed().as_nanos())?;
        out.flush()?;
        while body.read(&mut piece)? > 0 {}
        Ok(())
    })
}

/// An object; the times of having it, of a first pass over it and of a second, and their sum.
fn scan(query: &Query) -> Result<Response, Error> {
    let began = Instant::now();
    let object = view(query)?;
    let opened = began.elapsed();
    let began = Instant::now();
    let first = words::sum(&object);
    let cold = began.elapsed();
    let began = Instant::now();
    let second = words::sum(std::hint::black_box(&object));
    let warm = began.elapsed();
    if first != second {
        return Err(Error::msg("two passes found two sums"));
    }
    Ok(format!("{} {} {} {first}", opened.as_nanos(), cold.as_nanos(), warm.as_nanos()).into())
}

/// One step of training on the batch that an object is, of the model that lies in the bucket `volatile`; the time of the whole, of the
/// step, and what the weights are then.
fn train(query: &Query) -> Result<Response, Error> {
    let began = Instant::now();
    let models = kv::open("volatile")?;
    let mut trainer = Trainer::new();
    if query.number("step")? > 0
        && let Some(bytes) = models.get("model")?
        && !trainer.load(&bytes)
    {
        return Err(Error::msg("that is no model"));
    }
    let batch = view(query)?;
    let computing = Instant::now();
    trainer.step(&batch);
    let computed = computing.elapsed();
    models.set("model", trainer.to_bytes())?;
    Ok(format!("{} {} {}", began.elapsed().as_nanos(), computed.as_nanos(), trainer.digest()).into())
}

/// The bytes of an object, mapped if they are many.
fn view(query: &Query) -> Result<Mapped, Error> {
    let (bucket, key) = (query.text("bucket")?, query.text("key")?);
    objects::map(bucket, key)?.ok_or_else(|| Error::msg(format!("there is no object '{key}'")))
}
