use std::io::{self, Read};

fn main() -> io::Result<()> {
    let mut body = String::new();
    io::stdin().read_to_string(&mut body)?;
    print!("{}", body.to_uppercase());
    Ok(())
}
