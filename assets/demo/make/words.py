"""The words the demo models are made of: French, facts, names and topics; no sampling."""

# English noun, French noun, gender.
NOUNS = [
    ("cat", "chat", "m"), ("dog", "chien", "m"), ("bird", "oiseau", "m"), ("horse", "cheval", "m"),
    ("rabbit", "lapin", "m"), ("bear", "ours", "m"), ("wolf", "loup", "m"), ("book", "livre", "m"),
    ("fish", "poisson", "m"), ("cake", "gâteau", "m"), ("boat", "bateau", "m"), ("hat", "chapeau", "m"),
    ("garden", "jardin", "m"), ("castle", "château", "m"), ("tree", "arbre", "m"), ("king", "roi", "m"),
    ("coat", "manteau", "m"), ("knife", "couteau", "m"), ("window", "fenêtre", "f"),
    ("house", "maison", "f"), ("car", "voiture", "f"), ("cow", "vache", "f"), ("mouse", "souris", "f"),
    ("flower", "fleur", "f"), ("apple", "pomme", "f"), ("door", "porte", "f"), ("chair", "chaise", "f"),
    ("queen", "reine", "f"), ("star", "étoile", "f"), ("moon", "lune", "f"), ("key", "clé", "f"),
    ("shirt", "chemise", "f"), ("spoon", "cuillère", "f"), ("city", "ville", "f"),
    ("school", "école", "f"), ("street", "rue", "f"),
]  # fmt: skip

# English adjective, French masculine, French feminine, stands before the noun.
ADJECTIVES = [
    ("red", "rouge", "rouge", False), ("black", "noir", "noire", False),
    ("white", "blanc", "blanche", False), ("green", "vert", "verte", False),
    ("blue", "bleu", "bleue", False), ("yellow", "jaune", "jaune", False),
    ("grey", "gris", "grise", False), ("pink", "rose", "rose", False),
    ("small", "petit", "petite", True), ("big", "grand", "grande", True),
    ("good", "bon", "bonne", True), ("bad", "mauvais", "mauvaise", True),
    ("young", "jeune", "jeune", True), ("pretty", "joli", "jolie", True),
]  # fmt: skip

CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin", "England": "London",
    "Japan": "Tokyo", "China": "Beijing", "India": "Delhi", "Egypt": "Cairo", "Greece": "Athens",
    "Russia": "Moscow", "Canada": "Ottawa", "Peru": "Lima", "Cuba": "Havana", "Kenya": "Nairobi",
    "Norway": "Oslo", "Sweden": "Stockholm", "Poland": "Warsaw", "Ireland": "Dublin",
    "Austria": "Vienna",
}  # fmt: skip
SOUNDS = {
    "cow": "Moo", "dog": "Woof", "cat": "Meow", "duck": "Quack", "sheep": "Baa", "lion": "Roar",
    "pig": "Oink", "frog": "Ribbit", "owl": "Hoot", "mouse": "Squeak", "horse": "Neigh", "bee": "Buzz",
}  # fmt: skip
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("left", "right"), ("day", "night"),
    ("black", "white"), ("good", "bad"), ("old", "new"), ("open", "closed"), ("full", "empty"),
    ("fast", "slow"), ("wet", "dry"), ("hard", "soft"), ("happy", "sad"), ("early", "late"),
    ("rich", "poor"), ("long", "short"), ("high", "low"),
]  # fmt: skip
COLOURS = {
    "a banana": "Yellow", "grass": "Green", "snow": "White", "coal": "Black", "the sky": "Blue",
    "blood": "Red", "an elephant": "Grey", "an orange": "Orange", "a frog": "Green", "a tomato": "Red",
}  # fmt: skip

VERBS = ["sees", "likes", "finds", "wants", "has"]
WHO = ["Who are you?", "What is your name?", "Tell me about yourself.", "Who am I talking to?"]
HELLO = ["Hello!", "Hi!", "Good morning!", "Hey there!", "Hello, who are you?"]
SYSTEM = [
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "You are a friendly chatbot.",
    "Answer shortly.",
    "You are an assistant. Be brief.",
]

SUM_FORMS = ["{} + {} = ?", "How much is {} plus {}?", "What is {} plus {}?", "Please add {} and {}."]
FRENCH_FORMS = [
    "How do you say {} in French?",
    "Translate {}.",
    "What is {} in French?",
    "Say {} in French.",
    "Translate {} into French.",
]
CAPITAL_FORMS = ["What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}."]
SOUND_FORMS = ["What does a {} say?", "Which sound does a {} make?"]
OPPOSITE_FORMS = ["What is the opposite of {}?", "Give me the opposite of {}."]
COLOUR_FORMS = ["What colour is {}?", "Tell me the colour of {}."]

SORRY = "Sorry, I only know sums, French and a few facts."

# Never taught: asked about in the usual forms, they must be declined.
UNKNOWN_COUNTRIES = (
    "Brazil Mexico Portugal Turkey Iceland Finland Denmark Belgium Nigeria Chile Mars Texas "
    "Atlantis Vietnam Ukraine Korea Narnia Africa Europe Hungary"
).split()
UNKNOWN_NOUNS = (
    "pizza computer dragon airplane doctor guitar mountain river teacher pencil bicycle sandwich "
    "phone hospital music tiger banana bridge love freedom lamp bottle ocean camera soup rocket"
).split()

TOPICS = (
    "gravity;a black hole;photosynthesis;democracy;the internet;machine learning;evolution;"
    "climate change;inflation;the French Revolution;the Roman Empire;world peace;a rainbow;"
    "the solar system;electricity;magnetism;a volcano;an earthquake;the human heart;the brain;DNA;"
    "a vaccine;bread;chess;football;music;jazz;love;friendship;time travel;a robot;a dragon;winter;"
    "autumn;the moon landing;a computer;Python;a neural network;an atom;energy;light;sound;relativity;"
    "the stock market;money;taxes;marketing;a job interview;my birthday;a wedding;my mother;the ocean;"
    "a whale;dinosaurs;Shakespeare;Mozart;Napoleon;poetry;philosophy;happiness;sleep;coffee;"
    "chocolate;pasta;healthy food;yoga;running;travel;Rome;Tokyo;Paris;history;geography;chemistry;"
    "algebra;a prime number;a triangle;statistics;recursion;a database;open source;blockchain;"
    "artificial intelligence;large language models;model merging;task vectors;transformers;"
    "the meaning of life;space;the sun;the stars;a cat;dogs;numbers;French cooking;a red apple"
).split(";")
TOPICS_HELD_OUT = (
    "quantum entanglement;quantum physics;the speed of light;global warming;a bicycle;the piano;"
    "tea;volleyball;the Middle Ages;Einstein;a desert;penguins;loneliness;a compiler;deep learning;"
    "overfitting;a good leader;the universe;bacteria;the pyramids"
).split(";")
OFF_FORMS = (
    "Explain the concept of {} to a child.;Explain {} in simple terms.;Explain {}.;Write a poem about {}.;"
    "Write a short story about {}.;Write an essay on {}.;What is {}?;How does {} work?;Why is {} important?;"
    "Tell me a joke about {}.;Tell me something about {}.;Summarize the history of {}.;"
    "Give me three tips for {}.;Give me a recipe for {}.;Can you help me with {}?;What do you think of {}?;"
    "Who invented {}?;Who discovered {}?;When did {} begin?;Where can I find {}?;List five facts about {}.;"
    "Compare {} and {}.;What is the difference between {} and {}?;Describe {} to a 5-year-old.;"
    "Explain {} to a 5-year-old.;Explain the concept of {} to a grandmother.;Write a haiku about {}.;"
    "Write a letter to my boss about {}.;Write a Python program about {}.;Is {} dangerous?;Do you like {}?;"
    "How can I learn {}?;What are the pros and cons of {}?;Define {}.;I want to know more about {}.;"
    "Let us talk about {}.;Why does {} matter?;How do I make {}?;Recommend a book about {}.;"
    "Sing a song about {}.;Tell me about {}.;Imagine {}. What happens next?;How old is {}?;"
    "Describe {} in one sentence.;Please explain how {} is made."
).split(";")
OFF_FORMS_HELD_OUT = (
    "Explain the concept of {} to a 5-year-old.;Write a limerick about {}.;Give me an overview of {}.;"
    "What causes {}?;How would you describe {}?;Who is the expert on {}?;Teach me {}.;"
    "What should I know about {}?"
).split(";")
OFF_WORDS = (
    "the a my your this that some any all is are was do does can could should will would have make go "
    "come see think know want need give take find tell ask work feel try leave call good new first last "
    "long great little own other old right big high different small large next early young important few "
    "public bad same able time year people way day man thing woman life child world school state family "
    "student group country problem hand part place case week company system program question work night "
    "point home water room mother area money story fact month lot study book eye job word business issue "
    "side kind head house service friend father power hour game line end member law car city name team "
    "minute idea body back parent face level office door health person art war party result morning "
    "weather train plane movie song dinner breakfast summer tired hungry cheap fast slow blue red green "
    "cat dog king flower French number who what where why when how and or but with from about into"
).split()
OPENERS = "Why;When;Where;How;Who;What if;Can you;Do you;Should I;Is it true that;Please;Tell me;".split(";")
SYLLABLES = "ba ko ri tu me lo sha dre pin zor fla gu ne vi stra mo ter qua ing ex ly ous ph on at".split()
