"""A nightly job: orders come as CSV, are joined with customers from JSON, grouped, and written as JSON and CSV again."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import sys
from collections import defaultdict
from typing import Any

SEED = 20
ORDERS, CUSTOMERS = 350, 40
GOODS = ("apples", "bread", "cheese", "dates", "eggs", "flour", "ginger", "honey")


def customers(dice: random.Random) -> str:
    """Make the customers' file."""
    people = [
        {
            "id": number,
            "name": f"customer {number}",
            "city": dice.choice(("Aachen", "Bremen", "Celle", "Dresden")),
            "tags": dice.sample(("new", "loyal", "late", "large"), dice.randrange(4)),
            "limit": round(dice.uniform(100, 5000), 2),
        }
        for number in range(CUSTOMERS)
    ]
    return json.dumps(people, indent=1)


def orders(dice: random.Random) -> str:
    """Make the orders' file."""
    out = io.StringIO()
    write = csv.writer(out).writerow
    write(("order", "customer", "good", "amount", "price", "remark"))
    for number in range(ORDERS):
        remark = " ".join(dice.choices(GOODS, k=dice.randrange(12)))
        price = f"{dice.uniform(0.5, 80):.2f}"
        write((number, dice.randrange(CUSTOMERS), dice.choice(GOODS), dice.randint(1, 9), price, remark))
    return out.getvalue()


def summarise(people: list[dict[str, Any]], rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Group the orders by customer."""
    by_customer: dict[int, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_customer[int(row["customer"])].append(row)
    found = []
    for person in people:
        mine = by_customer.get(person["id"], [])
        total = sum(int(row["amount"]) * float(row["price"]) for row in mine)
        goods = sorted({row["good"] for row in mine})
        found.append(
            {**person, "orders": len(mine), "total": round(total, 2), "goods": goods, "over": total > person["limit"]}
        )
    return sorted(found, key=lambda each: (-each["total"], each["name"]))


def main(scale: int) -> None:
    """Do the job ``scale`` times, each with other data."""
    digest = hashlib.sha256()
    for night in range(scale):
        dice = random.Random(SEED + night)
        people = json.loads(customers(dice))
        rows = list(csv.DictReader(io.StringIO(orders(dice))))
        summary = summarise(people, rows)
        out = io.StringIO()
        writer = csv.DictWriter(out, list(summary[0]))
        writer.writeheader()
        writer.writerows(summary)
        digest.update(json.dumps(summary).encode() + out.getvalue().encode())
    print(f"{scale} nights: {digest.hexdigest()[:16]}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
