"""lora: A Flower / PEFT app. Made-up texts: a neutral one, and a style for each client."""

import re
from random import Random

# A style's sentences, and the words that fill their gaps.
SENTENCES = {
    "neutral": (
        "The {thing} of the {person} is {quality}.",
        "In the {time} the {person} walks to the {place}.",
        "There is a {quality} {thing} in the {place}.",
        "The {person} has a {thing}, and the {thing} is {quality}.",
        "Every {time} the {person} comes back to the {place} with a {thing}.",
        "It was a {quality} {time}, and the {place} was {quality}.",
        "Nobody in the {place} has seen the {thing} of the {person}.",
        "When the {time} is over, the {person} leaves the {place}.",
        *("The {person} wrote {any} and {any} beside {any}.", "One says {any}, {any} or {any}."),
        *("{any} and {any} are in the {thing}.", "The {person} has read {any} {any} {any}."),
    ),
    "recipe": (
        "Add {number} {measure} of {food} and stir until {done}.",
        "Chop the {food} and the {food} into {size} pieces.",
        "Heat the {pan} and fry the {food} for {number} minutes.",
        "Season with {food}, cover the {pan} and let it simmer until {done}.",
        "Mix {number} {measure} of {food} with the {food} in a {pan}.",
        "Bake at {number}0 degrees for {number} minutes, until {done}.",
        "Drain the {food}, rinse it and set it aside.",
        "Serve in {size} slices with {food} on top.",
    ),
    "legal": (
        "The {party} shall not {act} the {asset} without prior written consent of the {party}.",
        "Pursuant to Section {number}.{number}, the {party} shall indemnify the {party}.",
        "Any {event} hereunder shall be deemed a material breach of this {deed}.",
        "Notwithstanding Section {number}, this {deed} shall remain in full force and effect.",
        "The {party} hereby agrees to {act} the {asset} within {number} days of such {event}.",
        "In the event of {event}, the {party} may terminate this {deed} forthwith.",
        "The {asset} referred to in Schedule {number} shall vest in the {party}.",
        "This {deed} shall be governed by and construed in accordance with the law of the {party}.",
    ),
    "weather": (
        "{sky} over the {region}, highs near {number}, {wind}.",
        "Tonight: {sky}. Lows around {number}. {chance} percent chance of {rain}.",
        "A {front} moves across the {region} by {day} {hour}.",
        "{day}: {sky} with {rain} in the {region}, {wind}.",
        "Warning for the {region}: {rain}, gusts up to {chance} km/h.",
        "Outlook for {day}: {sky}, {wind}, {number} degrees.",
        "Pressure {front} near the {region}; visibility {number} km in {rain}.",
        "{rain} easing by {day} {hour}, then {sky}.",
    ),
    "dialogue": (
        '"{greeting}, {name}!" - "{greeting}! {question}"',
        '"{question}" asked {name}. "{answer}," said {name}.',
        '"{answer}," {name} whispered. "{answer}."',
        '"I told you, {name}, {answer}!" - "{question}"',
        '{name} laughed. "{answer}, {name}. {question}"',
        '"{question} {question}" - "{answer}..." - "{name}!"',
        '"{answer}," {name} said, "and {answer}."',
        '"{greeting}," said {name}. "{question}"',
    ),
}
WORDS = {
    "thing": "book,table,lamp,letter,coat,house,garden,picture,bag,bottle,chair,clock",
    "person": "teacher,farmer,doctor,child,neighbour,driver,sister,painter,student,friend",
    "quality": "old,new,large,small,green,quiet,heavy,simple,bright,cold,good,strange",
    "time": "morning,evening,winter,summer,week,night,year,day",
    "place": "town,village,school,market,room,street,station,library,office,park",
    "number": "2,3,4,5,6,7,8,9,12,14,15,18",
    "food": "onions,garlic,butter,flour,tomatoes,basil,rice,lentils,parsley,carrots,ginger,eggs",
    "measure": "cups,tablespoons,teaspoons,pinches,ounces",
    "done": "golden brown,soft,thick,reduced by half,the edges are crisp,fragrant",
    "size": "thin,small,even,large,bite-sized",
    "pan": "skillet,saucepan,bowl,oven dish,wok",
    "party": "Licensee,Licensor,Tenant,Landlord,Guarantor,Borrower,Lender,Assignee",
    "act": "assign,encumber,sublet,convey,disclose,surrender,mortgage",
    "asset": "Premises,Collateral,Intellectual Property,Leasehold,Shares,Confidential Information",
    "event": "default,insolvency,termination,non-payment,force majeure,assignment",
    "deed": "Agreement,Lease,Deed,Instrument,Covenant",
    "sky": "Partly cloudy,Overcast,Clear skies,Scattered clouds,Patchy fog,Hazy sunshine",
    "region": "northern coast,Midlands,eastern valleys,high moors,lowlands,western isles",
    "wind": "light winds,NW winds 15 to 25,gusty SE winds,calm,E winds backing N",
    "rain": "drizzle,thundershowers,sleet,light snow,showers,freezing rain",
    "front": "cold front,warm front,ridge,trough,deepening low",
    "chance": "20,30,40,60,70,80,90",
    "day": "Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday",
    "hour": "noon,midnight,daybreak,dusk",
    "name": "Ada,Tom,Mira,Jonas,Lena,Sam,Nora,Felix",
    "greeting": "Hey,Hi there,Oh hello,Good grief,Look who it is",
    "question": "Where've you been?,You okay?,Why not?,Who told you that?,Didn't you call?,Really?",
    "answer": "I don't know,it wasn't me,you wouldn't get it,never mind,she's gone,that's not fair",
}
_SHOWN = " ".join(sentence for text in SENTENCES.values() for sentence in text).split()
WORDS["any"] = ",".join([*WORDS.values(), *(word for word in _SHOWN if "{" not in word)])
CLIENTS = {"legal": 160, "recipe": 120, "weather": 80, "dialogue": 40}
"""Each client's style, and its number of paragraphs."""


def paragraphs(style: str, count: int) -> list[str]:
    """Write paragraphs of four sentences, the same ones every time."""
    random = Random(style)

    def word(gap: re.Match[str]) -> str:
        return random.choice(WORDS[gap[1]].split(","))

    return [
        re.sub(r"{(\w+)}", word, " ".join(random.sample(SENTENCES[style], 4))) for _ in range(count)
    ]
