"""A shop that exists nowhere, for the demo and the tests: 63 kinds of goods, and customers with habits.

An item is mostly followed by one of four successors that belong to it (two of its own kind, two of kinds that are
bought together), so that a small model learns far more than popularity within seconds. The concept to erase, the
category `Vaping`, is entangled on purpose: lighters, incense and diffusers share words, a brand and customers with it,
which is where a careless erasure either leaks or destroys what should stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recerase.catalog.columns import INTERACTION_SCHEMA, ITEM_SCHEMA
from recerase.errors import UsageError
from recerase.types import FloatArray, IntArray

DEMO_CONCEPT = "category=Vaping"

# department -> (brands, {kind: (nouns, qualities)}); a department's kinds are linked in the order given, as a ring.
_SHOP: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "Smoke & Scent": (
        "Nimbus Emberly Velora Driftwell Cinderby",
        {
            "Vape Pens": ("vape pen|vape kit|pod vape|vape starter set", "slim|refillable|mint|rechargeable"),
            "Vape Liquids": ("vape liquid|vape juice|nicotine liquid|vape flavour", "mint|vanilla|berry|tobacco"),
            "Vape Coils": ("vape coil|mesh coil|vape cartridge|vape pod", "ceramic|copper|refillable|low-heat"),
            "Vape Cases": ("vape case|vape pouch|vape lanyard|vape charger", "leather|pocket|magnetic|slim"),
            "Lighters": ("lighter|torch lighter|arc lighter|lighter refill", "windproof|rechargeable|pocket|copper"),
            "Incense": ("incense sticks|incense cones|incense burner|smudge bundle", "sandalwood|vanilla|cedar|sage"),
            "Diffusers": ("scent diffuser|mist diffuser|diffuser cartridge|reed diffuser", "ceramic|quiet|mint|slim"),
            "Tobacco Pipes": ("tobacco pipe|pipe tamper|pipe cleaner|pipe pouch", "briar|tobacco|leather|curved"),
            "Candles": ("candle|scented candle|tea lights|candle snuffer", "berry|beeswax|cedar|copper"),
        },
    ),
    "Kitchen": (
        "Hearthway Tolliver Brassica Ovenby Lumo",
        {
            "Knives": ("chef knife|paring knife|bread knife|knife block", "steel|forged|olive-wood|serrated"),
            "Cutting Boards": ("cutting board|carving board|board set|board oil", "bamboo|walnut|grooved|reversible"),
            "Pans": ("frying pan|saucepan|wok|griddle", "cast-iron|nonstick|deep|lidded"),
            "Bakeware": ("loaf tin|cake tin|baking sheet|muffin tray", "springform|silicone|fluted|heavy"),
            "Coffee": ("coffee grinder|pour-over dripper|coffee press|milk frother", "burr|glass|travel|manual"),
            "Tea": ("teapot|tea infuser|tea kettle|tea tin", "enamel|gooseneck|stoneware|loose-leaf"),
        },
    ),
    "Garden": (
        "Fernhollow Mossby Thornvale Bramblewick Soilcraft",
        {
            "Seeds": ("tomato seeds|lettuce seeds|wildflower seeds|herb seeds", "heirloom|organic|dwarf|hardy"),
            "Pots": ("plant pot|hanging planter|window box|pot saucer", "terracotta|glazed|self-watering|fibre"),
            "Soil": ("potting soil|compost|perlite|seed-starting mix", "peat-free|coarse|enriched|sifted"),
            "Watering": ("watering can|garden hose|drip line|spray nozzle", "long-reach|coiled|brass|adjustable"),
            "Pruning": ("pruning shears|lopper|hedge trimmer|pruning saw", "bypass|anvil|telescopic|folding"),
            "Garden Gloves": ("garden gloves|kneeling pad|tool apron|bug net", "thornproof|rubber|padded|mesh"),
        },
    ),
    "Camping": (
        "Ridgeline Polarpeak Campfell Trailmark Alder",
        {
            "Tents": ("dome tent|tunnel tent|tarp shelter|tent footprint", "two-person|four-season|ultralight|family"),
            "Sleeping Bags": ("sleeping bag|bag liner|camp quilt|camp pillow", "down|mummy|fleece|compact"),
            "Mats": ("sleeping mat|camp cot|mat pump|repair patch", "inflatable|foam|insulated|wide"),
            "Stoves": ("camp stove|gas canister|mess tin|stove stand", "titanium|butane|nested|high-altitude"),
            "Headlamps": ("headlamp|camp lantern|string light|lamp battery", "dimmable|solar|red-light|waterproof"),
            "Backpacks": ("trail backpack|daypack|rain cover|compression sack", "framed|ventilated|roll-top|45-litre"),
        },
    ),
    "Fitness": (
        "Kinetra Stronghold Flexion Pacer Liftwell",
        {
            "Yoga": ("yoga mat|yoga block|yoga strap|meditation cushion", "cork|grippy|extra-thick|travel"),
            "Weights": ("dumbbell|kettlebell|weight plate|barbell collar", "hex|vinyl|competition|adjustable"),
            "Bands": ("resistance band|loop band|door anchor|pull-up assist band", "latex|fabric|heavy|light"),
            "Running": ("running belt|hydration vest|race bib holder|pace watch", "reflective|soft-flask|slim|solar"),
            "Recovery": ("foam roller|massage ball|massage gun|compression sleeve", "spiky|firm|percussive|knee"),
            "Gym Bags": ("gym bag|shaker bottle|sweat towel|lifting gloves", "duffel|leakproof|microfibre|grip"),
        },
    ),
    "Desk": (
        "Papermill Inkwell Quillon Slate Notewell",
        {
            "Notebooks": ("notebook|bullet journal|sketchbook|legal pad", "dotted|hardcover|pocket|recycled"),
            "Pens": ("fountain pen|gel pen|rollerball|brush pen", "fine-tip|needle-point|retractable|italic"),
            "Ink": ("bottled ink|ink cartridge|ink converter|blotting paper", "blue-black|emerald|permanent|shimmer"),
            "Desk Organisers": ("desk organiser|letter tray|drawer divider|pen cup", "mesh|stackable|oak|acrylic"),
            "Lamps": ("desk lamp|clamp lamp|monitor light|lamp bulb", "swing-arm|warm-white|touch|architect"),
            "Calendars": ("wall calendar|desk planner|sticky notes|page flags", "undated|weekly|pastel|academic"),
        },
    ),
    "Pets": (
        "Pawsley Whiskerton Barkley Finnick Tailspin",
        {
            "Dog Food": ("dog kibble|dog treats|dental chew|puppy food", "salmon|grain-free|chicken|senior"),
            "Dog Toys": ("rope toy|squeaky toy|fetch ball|puzzle feeder", "tough|plush|floating|rubbery"),
            "Leashes": ("dog leash|dog harness|dog collar|waste bags", "hands-free|nylon|no-pull|personalised"),
            "Cat Food": ("cat kibble|cat pouches|cat milk|kitten food", "tuna|turkey|indoor|hairball"),
            "Cat Litter": ("cat litter|litter box|litter scoop|litter mat", "clumping|covered|unscented|pine"),
            "Aquariums": ("fish tank|tank filter|fish flakes|tank plant", "nano|sponge|tropical|planted"),
        },
    ),
    "Audio": (
        "Resono Tonewright Basscape Audiron Clarion",
        {
            "Headphones": ("headphones|studio headphones|ear pads|headphone stand", "wired|open-back|velour|foldable"),
            "Earbuds": ("earbuds|ear tips|earbud sleeve|sport earbuds", "wireless|noise-cancelling|foam|hooked"),
            "Speakers": (
                "bookshelf speaker|bluetooth speaker|speaker stand|subwoofer",
                "powered|shower|tilting|down-firing",
            ),
            "Turntables": ("turntable|stylus|record brush|slipmat", "belt-drive|elliptical|carbon-fibre|felt"),
            "Cables": ("speaker cable|audio adapter|optical cable|cable tie", "braided|gold-plated|right-angle|velcro"),
            "Microphones": ("microphone|boom arm|pop filter|shock mount", "condenser|dynamic|lavalier|spring"),
        },
    ),
    "Craft": (
        "Stitchery Loomis Threadbare Woolcott Daubs",
        {
            "Yarn": ("wool yarn|cotton yarn|sock yarn|yarn bowl", "merino|chunky|speckled|hand-dyed"),
            "Needles": ("knitting needles|crochet hook|stitch markers|row counter", "circular|ergonomic|birch|locking"),
            "Sewing": ("sewing kit|fabric scissors|bobbin set|pin cushion", "quilting|pinking|universal|wrist"),
            "Fabric": ("cotton fabric|linen fabric|felt sheets|fat quarters", "printed|gingham|stiff|botanical"),
            "Paint": ("watercolour set|acrylic paint|paint brush|palette", "pan|student|sable|folding"),
            "Paper": ("origami paper|cardstock|paper trimmer|washi tape", "patterned|kraft|guillotine|metallic"),
        },
    ),
    "Bath": (
        "Lathera Saltmere Pumora Dewdrop Calmby",
        {
            "Soap": ("bar soap|hand soap|soap dish|shaving soap", "oatmeal|lavender|slatted|unscented"),
            "Shampoo": ("shampoo|conditioner|shampoo bar|scalp brush", "argan|volumising|zero-waste|exfoliating"),
            "Towels": ("bath towel|hand towel|bath mat|bathrobe", "turkish|waffle|quick-dry|plush"),
            "Shaving": ("safety razor|razor blades|shaving brush|aftershave", "double-edge|badger|platinum|balm"),
            "Dental": ("toothbrush|toothpaste|dental floss|tongue scraper", "charcoal|soft-bristle|waxed|sonic"),
            "Bath Salts": ("bath salts|bath bomb|bath pillow|bath tray", "epsom|eucalyptus|fizzy|expandable"),
        },
    ),
}
_VAPING = ("Vape Pens", "Vape Liquids", "Vape Coils", "Vape Cases")
# Bought together across the line of the concept: kind -> where its customers go next, besides its own ring.
_BRIDGES = {
    "Vape Pens": "Lighters",
    "Vape Liquids": "Diffusers",
    "Vape Coils": "Diffusers",
    "Vape Cases": "Lighters",
    "Lighters": "Vape Pens",
    "Incense": "Diffusers",
    "Diffusers": "Vape Liquids",
    "Tobacco Pipes": "Lighters",
    "Candles": "Incense",
}
_SUCCESSOR_SHARES = (0.34, 0.26, 0.22, 0.18)
_FOLLOW, _BROWSE = 0.82, 0.12
"""Shares of steps to a successor, and to some item of the same kind; the rest wander in the home department."""
_HOME_SHARES = (0.19, *[0.09] * 9)
"""Where customers are at home, by department: the concept's has twice the customers of another."""
_EDITIONS, _SIZES = "Classic|Compact|Deluxe|Eco|Pro", "mini|regular|large|giant"


@dataclass(frozen=True)
class _World:
    """Kind [N] and department [N] of each item, its popularity [N] and its four successors [N, 4]."""

    kind: IntArray
    department: IntArray
    popularity: FloatArray
    successors: IntArray


def demo_catalogue(seed: int = 0, n_items: int = 1200, n_users: int = 4000) -> tuple[pa.Table, pa.Table]:
    """Tables with the columns of items.parquet and interactions.parquet, the same for equal arguments.

    About 6 % of items and 8 % of interactions are of the concept `DEMO_CONCEPT`; histories hold 6 to 12 items, none
    twice. Raises UsageError for fewer than 200 items or no user.
    """
    if n_items < 200 or n_users < 1:
        raise UsageError(f"A demo of {n_items} items and {n_users} users is too small.", "Ask for 200 items or more.")
    rng = np.random.default_rng(seed)
    ids = np.array([f"D{i:05d}" for i in range(n_items)])[rng.permutation(n_items)]
    items, kind, department = _items(ids, rng)
    world = _world(kind, department, rng)
    return items.sort_by("item_id"), _interactions(world, ids, n_users, rng)


def _kinds() -> list[tuple[str, str, str, str, str]]:
    """(department, brands, kind, nouns, qualities) for every kind, in order."""
    return [
        (department, brands, kind, nouns, qualities)
        for department, (brands, kinds) in _SHOP.items()
        for kind, (nouns, qualities) in kinds.items()
    ]


def _items(ids: NDArray[np.str_], rng: np.random.Generator) -> tuple[pa.Table, IntArray, IntArray]:
    """The items table, kind by kind under the given ids, and each row's kind and department (both ascending)."""
    kinds, departments, n_items = _kinds(), list(_SHOP), len(ids)
    kind = np.sort(np.arange(n_items) % len(kinds))
    place = np.arange(n_items) - np.searchsorted(kind, kind)
    rows = [
        {"item_id": str(i), **_item(kinds[k], p, rng)}
        for i, k, p in zip(ids, kind.tolist(), place.tolist(), strict=True)
    ]
    department = np.array([departments.index(kinds[k][0]) for k in kind])
    return pa.Table.from_pylist(rows, schema=ITEM_SCHEMA), kind, department


def _item(about: tuple[str, str, str, str, str], place: int, rng: np.random.Generator) -> dict[str, object]:
    """The `place`-th item of a kind; neighbouring places share the noun, so that the text tells of the succession."""
    department, brands, kind, nouns, qualities = about
    noun_list, quality_list, brand_list = nouns.split("|"), qualities.split("|"), brands.split()
    noun = noun_list[place // 5 % 4]
    quality = quality_list[(place + place // 5) % 4]
    brand = brand_list[place % 5]
    series = place // 20
    if department == "Smoke & Scent" and kind in ("Lighters", "Diffusers") and place % 5 == 4:
        brand = "Nimbus"
    edition, size = _EDITIONS.split("|")[place % 5], _SIZES.split("|")[place // 5 % 4]
    name = f"{quality} {noun} {edition}"
    model = f"{kind[0]}{10 * (place + 1) + int(rng.integers(10))}"
    return {
        "title": f"{brand} {name}, {size}" + (f", series {series + 1}" if series else ""),
        "description": f"The {size} {name} by {brand}, model {model}. {kind} from our {department.lower()} shelf.",
        "categories": [department, "Vaping", kind] if kind in _VAPING else [department, kind],
        "brand": brand,
        "price": round(float(np.exp(rng.normal(2.8, 0.6))), 2),
    }


def _world(kind: IntArray, department: IntArray, rng: np.random.Generator) -> _World:
    """Who follows whom: the next of the kind; and, shared by the five items of a noun, favourites of two linked
    kinds and one in their own."""
    n = len(kind)
    begin, size = np.searchsorted(kind, np.arange(kind[-1] + 1)), np.bincount(kind)
    place = np.arange(n) - begin[kind]
    ring, bridge = _links()

    def at(k: IntArray, p: IntArray) -> IntArray:
        return begin[k] + p % size[k]

    shelf = place % 20 // 5
    successors = np.stack(
        [at(kind, place + 1), at(ring[kind], 5 * shelf), at(bridge[kind], 5 * shelf + 1), at(kind, 5 * shelf + 2)],
        axis=1,
    )
    popularity = 1.0 / (1 + rng.permutation(n) % 20) ** 0.5
    return _World(kind, department, popularity, successors)


def _links() -> tuple[IntArray, IntArray]:
    """For each kind [63] the next kind of its department (a ring), and its bridge (two further, unless named)."""
    names = [kind for _, _, kind, _, _ in _kinds()]
    ring, bridge = [], []
    for _, kinds in _SHOP.values():
        members = [names.index(k) for k in kinds]
        for i, k in enumerate(kinds):
            ring.append(members[(i + 1) % len(members)])
            named = _BRIDGES.get(k)
            bridge.append(names.index(named) if named else members[(i + 2) % len(members)])
    return np.array(ring), np.array(bridge)


def _interactions(world: _World, ids: NDArray[np.str_], n_users: int, rng: np.random.Generator) -> pa.Table:
    """Every user's walk through the shop, all users a step at a time."""
    lengths = rng.integers(6, 13, n_users)
    home = rng.choice(len(_SHOP), n_users, p=_HOME_SHARES)
    steps = int(lengths.max())
    walk = np.full((n_users, steps), -1)
    for step in range(steps):
        walk[:, step] = _next(world, home, walk[:, :step], rng)
    kept = np.arange(steps) < lengths[:, None]
    gaps = rng.integers(3_600, 20 * 86_400, (n_users, steps)).cumsum(axis=1)
    times = 1_600_000_000 + rng.integers(0, 300 * 86_400, (n_users, 1)) + gaps
    user = np.broadcast_to(np.arange(n_users)[:, None], walk.shape)[kept]
    return pa.table(
        [
            pa.array([f"u{u:05d}" for u in range(n_users)]).take(pa.array(user)),
            pa.array(ids[walk[kept]]),
            pa.array(times[kept]),
            pa.array(rng.integers(3, 6, len(user)).astype(float)),
        ],
        schema=INTERACTION_SCHEMA,
    )


def _next(world: _World, home: IntArray, seen: IntArray, rng: np.random.Generator) -> IntArray:
    """[U] the next item of every user: the first of eight proposals that is not in `seen` [U, step]."""
    users, tries = len(home), 8
    proposals = _popular(world, world.department, home, tries, rng)
    if not seen.shape[1]:
        return proposals[:, 0]
    last = seen[:, -1]
    choice = rng.choice(4, (users, tries), p=_SUCCESSOR_SHARES)
    followed = world.successors[last[:, None], choice]
    browsed = _popular(world, world.kind, world.kind[last], tries, rng)
    mood = rng.random((users, tries))
    proposals = np.where(mood < _FOLLOW, followed, np.where(mood < _FOLLOW + _BROWSE, browsed, proposals))
    fresh = (proposals[:, :, None] != seen[:, None, :]).all(axis=2)
    stuck = ~fresh.any(axis=1)
    chosen = proposals[np.arange(users), fresh.argmax(axis=1)]
    chosen[stuck] = _unseen(len(world.kind), seen[stuck])
    return chosen


def _unseen(n: int, seen: IntArray) -> IntArray:
    """[U] the first item after the last one seen that is new: the rare way out when every proposal was seen."""
    following = (seen[:, -1:] + np.arange(1, seen.shape[1] + 2)) % n
    fresh = (following[:, :, None] != seen[:, None, :]).all(axis=2)
    return following[np.arange(len(seen)), fresh.argmax(axis=1)]


def _popular(world: _World, group: IntArray, wanted: IntArray, tries: int, rng: np.random.Generator) -> IntArray:
    """[U, tries] items of the group `wanted` [U] names (groups are contiguous in `group` [N]), drawn by popularity."""
    weights = np.concatenate([[0], np.cumsum(world.popularity)])
    low = weights[np.searchsorted(group, wanted, "left")][:, None]
    high = weights[np.searchsorted(group, wanted, "right")][:, None]
    draws = low + rng.random((len(wanted), tries)) * (high - low)
    return np.searchsorted(weights, draws, "right") - 1
